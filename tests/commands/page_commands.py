"""Commands of documentation pages, with fewer faces and a shorter training."""

import re
import shlex
from collections.abc import Iterator

STEPS = {
    "--config.train.steps": 2,
    "--config.train.eval_every": 2,
    "--config.train.checkpoint_every": 2,
}


def shortened_commands(text: str, faces: int, test_faces: int) -> Iterator[list[str]]:
    """Words of each `lcgcn` command in a code block, without the name of the program."""
    values = {"--faces": faces, "--test-faces": test_faces, **STEPS}
    for name, value in values.items():
        text = re.sub(rf"({re.escape(name)}[= ])\S+", rf"\g<1>{value}", text)
    for line in text.replace("\\\n", " ").splitlines():
        program, *words = shlex.split(line)
        assert program == "lcgcn"
        yield words
