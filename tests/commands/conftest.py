import pytest

from lcgcn_jax.commands.main import main


@pytest.fixture
def refused(capsys):
    """Runs `lcgcn` with arguments that it must reject, and returns its error message of one line."""

    def run(*arguments) -> str:
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as stop:  # raised by argparse
            code = stop.code
        message = capsys.readouterr().err.strip()
        assert code == 2
        assert len(message.splitlines()) == 1, message
        assert "Traceback" not in message
        assert message.startswith("lcgcn")
        return message

    return run
