"""Output of commands in a file."""

import subprocess
import sys

import pytest

SCRIPT = """
from lcgcn_jax.terminal import set_up_output
set_up_output()
import time
from tqdm import tqdm
for _ in tqdm(range(40)):
    time.sleep(0.01)
"""


@pytest.mark.parametrize(("interval", "lines"), [(None, range(2, 3)), ("0.001", range(10, 60))])
def test_progress_bars_in_a_file_have_few_lines_unless_the_user_sets_the_interval(
    monkeypatch, interval, lines
):
    monkeypatch.delenv("TQDM_MININTERVAL", raising=False)
    if interval is not None:
        monkeypatch.setenv("TQDM_MININTERVAL", interval)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    assert len(done.stderr.strip().splitlines()) in lines


def test_names_that_cannot_be_encoded_are_escaped():
    code = "from lcgcn_jax.terminal import set_up_output as s; s(); print('caf\\u00e9 \\udcff')"
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", code],
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii"},
        check=True,
    )
    assert done.stdout == rb"caf\xe9 \udcff" + b"\n"


@pytest.mark.parametrize(
    ("redirection", "arguments", "code"),
    [
        (">&-", "models", 0),
        ("2>&-", "predict absent.jpg", 2),
        ("2>/dev/full", "predict absent.jpg", 2),
        (">&- 2>&-", "predict absent.jpg", 2),
    ],
)
def test_closed_or_full_streams_do_not_change_the_exit_code(redirection, arguments, code):
    command = f"{sys.executable} -m lcgcn_jax {arguments} {redirection}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, check=False)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr


def test_deleted_current_folder_is_one_line(tmp_path):
    (tmp_path / "gone").mkdir()
    command = f"rmdir {tmp_path}/gone; {sys.executable} -m lcgcn_jax predict ../absent/../a.jpg"
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, cwd=tmp_path / "gone", check=False
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
