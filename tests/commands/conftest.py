import pytest

from lcgcn_jax.commands.main import main


@pytest.fixture
def refused(capsys):
    """Runs `lcgcn` with arguments that it must refuse, and gives the one line that it says."""

    def run(*arguments) -> str:
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as stop:  # argparse leaves this way
            code = stop.code
        said = capsys.readouterr().err.strip()
        assert code == 2
        assert len(said.splitlines()) == 1, said
        assert "Traceback" not in said
        assert said.startswith("lcgcn")
        return said

    return run
