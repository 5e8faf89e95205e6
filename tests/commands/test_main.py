import subprocess
import sys

import pytest

from lcgcn_jax.commands.main import main
from lcgcn_jax.commands.parsing import COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert f"usage: lcgcn {command}" in said
    usage, _, rest = said.partition("example")
    assert len(usage.splitlines()) > 5
    assert "lcgcn " in rest


def test_help_lists_the_commands_without_starting_jax():
    code = (
        "import sys; from lcgcn_jax.commands.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'jax' not in sys.modules and 'tensorflow_datasets' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in COMMANDS:
        assert command in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evla"], "unknown command 'evla'; did you mean 'eval'?"),
        (["eval"], "the following arguments are required: --model, --data, --split"),
        (["eval", "--model", "m", "--data", "d", "--split", "s", "--flip"], "unrecognized: --flip"),
        (
            ["eval", "--model", "m", "--data", "d", "--split", "s", "--boxes", "mtcnn"],
            "invalid choice",
        ),
    ],
)
def test_mistyped_line_is_answered_in_one(refused, arguments, message):
    assert message in refused(*arguments)


def test_no_command_shows_the_map(capsys):
    assert main([]) == 2
    assert "demo" in capsys.readouterr().err
