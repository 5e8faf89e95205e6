import subprocess
import sys

import pytest

from lcgcn_jax.commands.main import main
from lcgcn_jax.commands.parsing import COMMANDS, RESEARCH, parse_arguments


@pytest.mark.parametrize("command", [*COMMANDS, *(f"research {name}" for name in RESEARCH)])
def test_help_has_usage_and_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    assert f"usage: lcgcn {command}" in output
    usage, _, example = output.partition("example")
    assert len(usage.splitlines()) > 5
    assert "lcgcn " in example


def test_research_command_is_optional(capsys):
    words = ["--model", "m", "--data", "d", "--batch_size=8"]
    assert vars(parse_arguments(["calibrate", *words])) == vars(
        parse_arguments(["research", "calibrate", *words])
    )
    with pytest.raises(SystemExit):
        main(["calibrate", "--help"])
    assert "usage: lcgcn research calibrate" in capsys.readouterr().out


def test_help_lists_the_commands_without_starting_jax():
    code = (
        "import sys; from lcgcn_jax.commands.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'jax' not in sys.modules and 'tensorflow_datasets' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in COMMANDS:
        assert f"\n    {command} " in done.stdout or f"\n    {command}\n" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evla"], "unknown command 'evla'; did you mean 'eval'?"),
        (["ablatoin"], "unknown command 'ablatoin'; did you mean 'ablation'?"),
        (["research", "eval"], "unknown command 'eval'; did you mean "),
        (["eval"], "the following arguments are required: --model, --data, --split"),
        (["eval", "--model", "m", "--data", "d", "--split", "s", "--flip"], "unrecognized: --flip"),
        (
            ["eval", "--model", "m", "--data", "d", "--split", "s", "--boxes", "mtcnn"],
            "invalid choice",
        ),
    ],
)
def test_invalid_arguments_are_one_line_errors(error_line, arguments, message):
    assert message in error_line(*arguments)


def test_no_arguments_print_the_help(capsys):
    assert main([]) == 2
    assert "demo" in capsys.readouterr().err
