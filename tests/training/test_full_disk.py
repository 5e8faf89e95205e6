"""Training on a full or read-only disk: a small tmpfs in a separate mount namespace."""

import os
import shutil
import subprocess
import sys

import pytest
import tiny

from lcgcn_jax.training.checkpoints import latest_checkpoint, read_checkpoint
from lcgcn_jax.training.metric_writer import read_metrics

pytestmark = pytest.mark.slow
STEPS = 24
SMALL, LARGE = "3m", "64m"  # too small for all checkpoints, and large enough

SCRIPT = """
train() {
  "$PYTHON" -m lcgcn_jax train --config "$CONFIG" --workdir "$DISK/run" --config.data.dir="$DATA" \\
    --config.train.steps=$STEPS --config.train.checkpoint_every=1 --config.train.keep=$STEPS \\
    >"$OUT/$1.out" 2>"$OUT/$1.err"
  echo $? >"$OUT/$1.code"
  cp -r "$DISK/run" "$OUT/$1"
}
mount -t tmpfs -o size=$SMALL tmpfs "$DISK" && train full &&
mount -o remount,size=$LARGE "$DISK" && train large &&
mount -o remount,ro "$DISK" && train readonly
"""
UNSHARE = ["unshare", "--map-root-user", "--mount", "sh", "-c"]


@pytest.fixture
def small_disk(tmp_path, synthetic98):
    """Outputs and workdirs of the same command on a small disk, on a larger one, and read-only."""
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    out.mkdir()
    can_mount = (
        shutil.which("unshare")
        and not subprocess.run(
            [*UNSHARE, f"mount -t tmpfs tmpfs {disk}"], capture_output=True
        ).returncode
    )
    if not can_mount:
        pytest.skip("cannot mount a disk (unshare --map-root-user --mount)")
    settings = {
        "PYTHON": sys.executable, "CONFIG": tiny.__file__, "DATA": synthetic98, "DISK": disk,
        "OUT": out, "STEPS": STEPS, "SMALL": SMALL, "LARGE": LARGE, "XLA_FLAGS": "",
    }  # fmt: skip
    environment = os.environ | {name: str(value) for name, value in settings.items()}
    subprocess.run([*UNSHARE, SCRIPT], check=True, env=environment)
    return disk / "run", out


def error_of(out, start):
    assert (out / f"{start}.code").read_text() == "2\n"
    stderr = (out / f"{start}.err").read_text()
    assert "Traceback" not in stderr
    assert stderr.count("lcgcn: error:") == 1
    error = stderr.strip().splitlines()[-1]
    assert error.startswith("lcgcn: error: ")
    return error


def test_full_disk_ends_the_run_in_one_line_and_it_resumes_on_a_larger_one(small_disk):
    run, out = small_disk
    error = error_of(out, "full")
    assert f"error: {run}/" in error
    assert (
        "cannot be written: No space left on device; fix that, and the same command resumes"
        in error
    )
    reached = int(latest_checkpoint(out / "full").name)
    assert 1 < reached < STEPS
    read_checkpoint(latest_checkpoint(out / "full"))
    names = {path.name for path in (out / "full" / "checkpoints").iterdir()}
    every = {str(step) for step in range(1, STEPS + 1)}
    assert names & every == {str(step) for step in range(1, reached + 1)}
    assert (out / "large.code").read_text() == "0\n"
    assert f"resuming from step {reached}\n" in (out / "large.out").read_text()
    assert latest_checkpoint(out / "large").name == str(STEPS)
    assert {path.name for path in (out / "large" / "checkpoints").iterdir()} == every
    logged = [row["step"] for row in read_metrics(out / "large") if "train/loss" in row]
    assert logged == list(range(1, STEPS + 1))
    assert f"{run}: cannot be written: Read-only file system" in error_of(out, "readonly")
