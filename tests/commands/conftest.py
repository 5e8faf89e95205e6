import pytest

from lcgcn_jax.commands.main import main


@pytest.fixture
def error_line(capsys):
    """Function that runs `lcgcn` with invalid arguments and returns the one-line error message."""

    def run(*arguments) -> str:
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as stop:  # raised by argparse
            code = stop.code
        error = capsys.readouterr().err.strip()
        assert code == 2
        assert len(error.splitlines()) == 1, error
        assert "Traceback" not in error
        assert error.startswith("lcgcn")
        return error

    return run
