"""The scripts of launch/: checked by shellcheck, and run dry."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lcgcn_jax.commands import train
from lcgcn_jax.commands.main import main
from lcgcn_jax.training.config import apply_overrides, load_config, parse_overrides

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
CONFIG = "configs/w300_lcgcn_best.py:small"
COMMON = ["--config", CONFIG, "--workdir", "runs/w300", "--data", "data/w300"]
ARGUMENTS = {
    "cuda": [*COMMON, "--devices", "0,1"],
    "slurm": [*COMMON, "--nodes", "2", "--devices", "8", "--jobs", "3", "--partition", "gpu"],
    "container": COMMON,
    "tpu_pod": [
        *(
            "--name",
            "faces",
            "--zone",
            "us-west4-a",
            "--type",
            "v5litepod-16",
            "--bucket",
            "my-faces",
        ),
        *COMMON,
    ],
}
OVERRIDES = ["--config.seed=3", "--config.init_from=my runs/first"]

in_each = pytest.mark.parametrize("name", ARGUMENTS)


def launch(name, *arguments, cwd=ROOT):
    # Nothing but the shell's own tools: in a dry run no other command is there to be run.
    return subprocess.run(
        [LAUNCH / f"{name}.sh", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin"},
        timeout=60,
    )


def dry_run(name, *arguments, cwd=ROOT):
    """The commands that would be run, as words."""
    done = launch(name, *ARGUMENTS[name], "--dry_run", *arguments, cwd=cwd)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    return [shlex.split(line) for line in lines if not line.startswith("# ")]


def training_of(name, commands):
    """The words of the `lcgcn train` that a script ends up with."""
    found = []
    for words in commands:
        if name == "slurm" and words[0] == "sbatch":
            words = shlex.split(words[words.index("--wrap") + 1])
        if name == "tpu_pod" and "--command" in words:
            words = shlex.split(words[words.index("--command") + 1].partition("&&")[2])
        if "train" in words:
            found.append(words[words.index("train") :])
    return found


def test_every_script_is_known():
    assert {path.stem for path in LAUNCH.glob("*.sh")} == {*ARGUMENTS, "running"}


def test_shellcheck_finds_nothing():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    files = [*LAUNCH.glob("*.sh"), ROOT / ".ci" / "run"]
    done = subprocess.run([shellcheck, "-x", *files], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@in_each
def test_scripts_are_strict(name):
    text = (LAUNCH / f"{name}.sh").read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text


@in_each
def test_help_names_every_option(name):
    done = launch(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    known = re.search(
        r"^parse_options '([^']*)'(?: \\\n *)? '([^']*)'", (LAUNCH / f"{name}.sh").read_text(), re.M
    )
    for option in [*known[1].split(), *known[2].split(), "dry_run", "help"]:
        assert f"--{option}" in done.stdout
    example = done.stdout.partition("example: ")[2].split()
    assert launch(name, "--dry_run", *example[1:]).returncode == 0


@in_each
def test_the_training_is_one_that_lcgcn_takes(name, monkeypatch):
    commands = dry_run(name, "--", *OVERRIDES)
    trainings = training_of(name, commands)
    assert len(trainings) == (3 if name == "slurm" else 1)
    seen = []
    monkeypatch.setattr(train, "run", lambda args: seen.append(args) or 0)
    monkeypatch.chdir(ROOT)
    assert main(trainings[0]) == 0
    (args,) = seen
    assert args.config == CONFIG
    assert args.workdir.name == "w300"
    assert args.distributed == (name in ("slurm", "tpu_pod"))
    config = load_config(args.config)
    apply_overrides(config, parse_overrides(args.overrides))
    assert (config.seed, config.init_from) == (3, "my runs/first")
    assert config.data.dir.endswith("/data" if name == "container" else "data/w300")


@in_each
def test_a_dry_run_leaves_nothing_behind(name, tmp_path):
    before = {*ROOT.iterdir(), *LAUNCH.iterdir()}
    commands = dry_run(name, cwd=tmp_path)
    assert commands
    assert not list(tmp_path.iterdir())
    assert before == {*ROOT.iterdir(), *LAUNCH.iterdir()}


@in_each
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "configs/none.py"], "configs/none.py: no such file"),
        (["--wrkdir", "runs/a"], "unknown option --wrkdir"),
        (["--workdir"], "--workdir: a value is missing"),
        (["--workdir", "--dry_run"], "--workdir: a value is missing"),
        (["--", "--seed=3"], "--seed=3: behind -- there are only --config.NAME=VALUE"),
        (["more"], "unknown option more"),
    ],
)
def test_a_mistake_is_told_in_one_line(name, arguments, message):
    assert_refused(launch(name, *ARGUMENTS[name], *arguments), message)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cuda", ["--devices", "all"], "--devices 'all': not numbers with commas"),
        ("slurm", ["--nodes", "0"], "--nodes 0: not a whole number of at least 1"),
        ("slurm", ["--devices", "two"], "--devices two: not a whole number"),
        ("slurm", ["--time", "a day"], "--time 'a day': not a time"),
        ("slurm", ["--environment", "none"], "none: no lcgcn in it"),
        ("container", ["--engine", "rocket"], "not docker or podman"),
        ("container", ["--data", "none"], "--data none: no such folder"),
        ("tpu_pod", ["--type", "v5e"], "--type 'v5e': not a type"),
        ("tpu_pod", ["--type", "v7x-8"], "--type v7x-8: its image is not known"),
        ("tpu_pod", ["--nfs", "host:/faces"], "give --bucket or --nfs, not both"),
        ("tpu_pod", ["--workdir", "../runs"], "--workdir '../runs': not a path within"),
        ("tpu_pod", ["--data", "a/../../b"], "--data 'a/../../b': not a path within"),
        ("tpu_pod", ["--name", "My_Slice"], "--name 'My_Slice': not small letters"),
    ],
)
def test_a_wrong_value_is_told_in_one_line(name, arguments, message):
    assert_refused(launch(name, *ARGUMENTS[name], *arguments), message)


@in_each
def test_what_is_missing_is_told(name):
    assert_refused(launch(name), " is missing")


def assert_refused(done, message):
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr


def test_a_chain_of_slurm_jobs_shares_a_name():
    jobs = [words for words in dry_run("slurm") if words[0] == "sbatch"]
    assert jobs[0] == jobs[1] == jobs[2]
    assert {"--requeue", "singleton", "lcgcn-w300", "TERM@120"} <= set(jobs[0])


@pytest.mark.parametrize(
    ("code", "is_failure"),
    [(0, False), (143, False), (130, False), (129, False), (1, True), (2, True), (137, True)],
)
def test_only_a_failed_process_of_a_slurm_step_ends_the_others(tmp_path, code, is_failure):
    job = next(words for words in dry_run("slurm") if words[0] == "sbatch")
    srun = shlex.split(job[job.index("--wrap") + 1])
    assert "--kill-on-bad-exit=0" in srun
    shell = srun[srun.index("bash") : srun.index("lcgcn") + 1]
    scancel = tmp_path / "scancel"
    scancel.write_text(f'#!/bin/sh\necho "$@" > {shlex.quote(str(tmp_path))}/canceled\n')
    scancel.chmod(0o755)
    # Slurm sends its signal to the shell as well as to the training, which takes a moment to save.
    training = ["sh", "-c", f"kill -TERM $PPID; sleep 0.1; exit {code}"]
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "SLURM_JOB_ID": "12",
        "SLURM_STEP_ID": "0",
    }
    done = subprocess.run([*shell, *training], env=environment, timeout=60)
    assert done.returncode == code
    canceled = tmp_path / "canceled"
    assert canceled.is_file() == is_failure
    if is_failure:
        assert canceled.read_text() == "--signal KILL 12.0\n"


# A gcloud that keeps the state of one slice in a file, and a training that is preempted, fails or ends.
GCLOUD = """#!/usr/bin/env bash
echo "$@" >> "$LOG/calls"
case "$3 $4" in
  'queued-resources describe') cat "$LOG/state" ;;
  'queued-resources create') echo ACTIVE > "$LOG/state" ;;
  'queued-resources delete') rm "$LOG/state" ;;
  'tpu-vm ssh')
    if [[ $* == *'lcgcn train'* ]]; then
      echo train >> "$LOG/trainings"
      [[ $OUTCOME != fails ]] || exit 1
      if [[ $OUTCOME == preempted && $(wc -l < "$LOG/trainings") -lt 3 ]]; then
        echo SUSPENDED > "$LOG/state"
        [[ $(wc -l < "$LOG/trainings") == 1 ]] || exit 1
        echo 'runs/w300: saved at step 7; the same command goes on'
        exit 143
      fi
      echo "$DONE"
    fi ;;
esac
"""


@pytest.mark.parametrize(
    ("outcome", "code", "slices"), [("ends", 0, 1), ("preempted", 0, 3), ("fails", 1, 1)]
)
def test_a_preempted_slice_is_asked_for_again(tmp_path, outcome, code, slices):
    for name, text in {"gcloud": GCLOUD, "sleep": "#!/bin/sh\n", "git": "#!/bin/sh\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    ends = re.search(r'print\(f"{args.workdir}: (done; [^,]*)', Path(train.__file__).read_text())
    done = subprocess.run(
        [LAUNCH / "tpu_pod.sh", *ARGUMENTS["tpu_pod"], "--spot"],
        capture_output=True,
        text=True,
        env={
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "LOG": tmp_path,
            "OUTCOME": outcome,
            "DONE": ends[1],
        },
        timeout=60,
    )
    assert done.returncode == code, done.stdout + done.stderr
    calls = (tmp_path / "calls").read_text()
    assert len((tmp_path / "trainings").read_text().splitlines()) == slices
    assert calls.count("queued-resources create faces") == slices
    assert calls.count("--spot") == slices
    assert calls.count("queued-resources delete faces") == (0 if outcome == "fails" else slices)
    assert ("the same command goes on" in done.stderr) == (outcome == "fails")


def test_the_container_copies_what_there_is():
    lines = (LAUNCH / "Containerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {
        folder.split("/")[0] for folder in project["tool"]["setuptools"]["package-dir"].values()
    }
    assert copied == {
        *needed,
        "pyproject.toml",
        "setup.py",
        project["project"]["readme"],
        "LICENSE",
    }
    assert all((ROOT / name).exists() for name in copied)
    extra = re.search(r"pip install .*'\.\[(\w+)\]'", "\n".join(lines))[1]
    assert extra in project["project"]["optional-dependencies"]
    assert f'ENTRYPOINT ["{next(iter(project["project"]["scripts"]))}"]' in lines


def test_the_page_names_every_script():
    page = (LAUNCH / "README.md").read_text()
    for name in [f"{name}.sh" for name in ARGUMENTS] + ["Containerfile"]:
        assert name in page
