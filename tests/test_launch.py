"""Scripts of launch/: shellcheck, dry runs, and the handling of preemptions and failures."""

import re
import shlex
import string
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

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
        *shlex.split("--name faces --zone us-west4-a --type v5litepod-16 --bucket my-faces"), *COMMON,
    ],
}  # fmt: skip
OVERRIDES = ["--config.seed=3", "--config.init_from=my runs/first"]

in_each = pytest.mark.parametrize("name", ARGUMENTS)


def launch(name, *arguments, cwd=ROOT):
    # A dry run needs no command except the tools of the shell.
    return subprocess.run(
        [LAUNCH / f"{name}.sh", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin"},
        timeout=60,
    )


def dry_run(name, *arguments, cwd=ROOT):
    """Commands that a dry run prints, as lists of words."""
    process = launch(name, *ARGUMENTS[name], "--dry_run", *arguments, cwd=cwd)
    assert (process.returncode, process.stderr) == (0, "")
    lines = process.stdout.splitlines()
    return [shlex.split(line) for line in lines if not line.startswith("# ")]


def training_of(name, commands):
    """Arguments of `lcgcn` in the commands of a script."""
    trainings = []
    for words in commands:
        if name == "slurm" and words[0] == "sbatch":
            words = shlex.split(words[words.index("--wrap") + 1])
        if name == "tpu_pod" and "--command" in words:
            words = shlex.split(words[words.index("--command") + 1].split("&&")[1])
        if "train" in words:
            trainings.append(words[words.index("train") :])
    return trainings


@pytest.mark.parametrize("page", ["slurm", "multi-host", "cloud-tpu"])
def test_commands_of_the_documentation(page):
    text = (ROOT / f"docs/how-to/{page}.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^launch/(\w+)\.sh (.*)$", text, re.MULTILINE)
    assert commands
    for name, arguments in commands:
        process = launch(name, "--dry_run", *shlex.split(arguments, comments=True))
        assert (process.returncode, process.stderr) == (0, ""), (name, arguments)


def test_every_script_is_tested():
    assert {path.stem for path in LAUNCH.glob("*.sh")} == {*ARGUMENTS, "common"}


def test_shellcheck():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    files = [*LAUNCH.glob("*.sh"), ROOT / "benchmarks" / "gpu.sh", ROOT / ".ci" / "run"]
    process = subprocess.run([shellcheck, "-x", *files], capture_output=True, text=True, cwd=ROOT)
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")


@in_each
def test_scripts_are_strict(name):
    text = (LAUNCH / f"{name}.sh").read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text


@in_each
def test_help_names_every_option(name):
    process = launch(name, "--help")
    assert (process.returncode, process.stderr) == (0, "")
    options = re.search(
        r"^parse_options '([^']*)'(?: \\\n *)? '([^']*)'", (LAUNCH / f"{name}.sh").read_text(), re.M
    )
    for option in [*options[1].split(), *options[2].split(), "dry_run", "help"]:
        assert f"--{option}" in process.stdout
    example = process.stdout.partition("example: ")[2].split()
    assert launch(name, "--dry_run", *example[1:]).returncode == 0


@in_each
def test_lcgcn_parses_the_training_command(name, monkeypatch):
    commands = dry_run(name, "--", *OVERRIDES)
    trainings = training_of(name, commands)
    assert len(trainings) == (3 if name == "slurm" else 1)
    calls = []
    monkeypatch.setattr(train, "run", lambda args: calls.append(args) or 0)
    monkeypatch.chdir(ROOT)
    assert main(trainings[0]) == 0
    (args,) = calls
    assert args.config == CONFIG
    assert args.workdir.name == "w300"
    assert args.distributed == (name in ("slurm", "tpu_pod"))
    config = load_config(args.config)
    apply_overrides(config, parse_overrides(args.overrides))
    assert (config.seed, config.init_from) == (3, "my runs/first")
    assert config.data.dir.endswith("/data" if name == "container" else "data/w300")


def test_lcgcn_parses_the_training_command_of_the_skypilot_template(monkeypatch):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    words = shlex.split(string.Template(task["run"]).substitute(task["envs"]))
    calls = []
    monkeypatch.setattr(train, "run", lambda args: calls.append(args) or 0)
    assert main(words[1:]) == 0
    (args,) = calls
    config = load_config(args.config)
    apply_overrides(config, parse_overrides(args.overrides))
    assert config.data.dir == "gs://my-faces/w300"
    assert str(args.workdir) == "gs://my-faces/runs/w300"


@in_each
def test_dry_run_writes_no_files(name, tmp_path):
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
        (["--workdir"], "--workdir: the value is missing"),
        (["--workdir", "--dry_run"], "--workdir: the value is missing"),
        (["--", "--seed=3"], "--seed=3: only --config.NAME=VALUE may follow --"),
        (["more"], "unknown option more"),
    ],
)
def test_invalid_options(name, arguments, message):
    assert_fails(launch(name, *ARGUMENTS[name], *arguments), message)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("slurm", ["--nodes", "0"], "--nodes '0': expected a positive integer"),
        ("slurm", ["--devices", "two"], "--devices 'two': expected a positive integer"),
        ("slurm", ["--environment", "none"], "none: lcgcn is not installed"),
        ("container", ["--engine", "rocket"], "--engine 'rocket': expected docker or podman"),
        ("container", ["--data", "none"], "--data none: no such folder"),
        ("tpu_pod", ["--type", "v7x-8"], "--type v7x-8: unknown type; give --runtime_version"),
        ("tpu_pod", ["--nfs", "host:/faces"], "give --bucket or --nfs, not both"),
        ("tpu_pod", ["--bucket", "a b"], "--bucket 'a b': expected the name of a bucket"),
        ("tpu_pod", ["--workdir", "../runs"], "--workdir '../runs': expected a path inside"),
        ("tpu_pod", ["--data", "a/../../b"], "--data 'a/../../b': expected a path inside"),
    ],
)
def test_invalid_values(name, arguments, message):
    assert_fails(launch(name, *ARGUMENTS[name], *arguments), message)


@in_each
def test_missing_options(name):
    assert_fails(launch(name), " is missing")


def assert_fails(process, message):
    assert process.returncode == 2
    assert process.stdout == ""
    assert len(process.stderr.splitlines()) == 1
    assert message in process.stderr


def test_slurm_jobs_of_a_chain_have_the_same_name():
    jobs = [words for words in dry_run("slurm") if words[0] == "sbatch"]
    assert jobs[0] == jobs[1] == jobs[2]
    assert {"--requeue", "singleton", "lcgcn-w300", "TERM@120"} <= set(jobs[0])


@pytest.mark.parametrize(
    ("code", "is_failure"),
    [(0, False), (143, False), (130, False), (129, False), (1, True), (2, True), (137, True)],
)
def test_failed_process_ends_the_slurm_step_but_a_stopped_one_does_not(tmp_path, code, is_failure):
    job = next(words for words in dry_run("slurm") if words[0] == "sbatch")
    srun = shlex.split(job[job.index("--wrap") + 1])
    assert "--kill-on-bad-exit=0" in srun
    shell = srun[srun.index("bash") : srun.index("lcgcn") + 1]
    scancel = tmp_path / "scancel"
    scancel.write_text(f'#!/bin/sh\necho "$@" > {shlex.quote(str(tmp_path))}/canceled\n')
    scancel.chmod(0o755)
    # Slurm signals the shell and the training, which takes a moment to save.
    training = ["sh", "-c", f"kill -TERM $PPID; sleep 0.1; exit {code}"]
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "SLURM_JOB_ID": "12",
        "SLURM_STEP_ID": "0",
    }
    process = subprocess.run([*shell, *training], env=environment, timeout=60)
    assert process.returncode == code
    canceled = tmp_path / "canceled"
    assert canceled.is_file() == is_failure
    if is_failure:
        assert canceled.read_text() == "--signal KILL 12.0\n"


# Simulated gcloud: the state of one slice in a file, and a training that is preempted, fails or finishes.
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
        exit 143
      fi
      echo "TRAINING FINISHED"
    fi ;;
esac
"""


@pytest.mark.parametrize(
    ("outcome", "code", "slices"), [("finishes", 0, 1), ("preempted", 0, 3), ("fails", 1, 1)]
)
def test_preempted_tpu_slice_is_requested_again(tmp_path, outcome, code, slices):
    for name, text in {"gcloud": GCLOUD, "sleep": "#!/bin/sh\n", "git": "#!/bin/sh\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    process = subprocess.run(
        [LAUNCH / "tpu_pod.sh", *ARGUMENTS["tpu_pod"], "--spot"],
        capture_output=True,
        text=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "LOG": tmp_path, "OUTCOME": outcome},
        timeout=60,
    )
    assert process.returncode == code, process.stdout + process.stderr
    calls = (tmp_path / "calls").read_text()
    assert len((tmp_path / "trainings").read_text().splitlines()) == slices
    assert calls.count("queued-resources create faces") == slices
    assert calls.count("--spot") == slices
    assert calls.count("queued-resources delete faces") == (0 if outcome == "fails" else slices)
    assert ("the same command resumes it" in process.stderr) == (outcome == "fails")


def test_containerfile_agrees_with_the_project():
    lines = (LAUNCH / "Containerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {
        folder.split("/")[0] for folder in project["tool"]["setuptools"]["package-dir"].values()
    }
    files = {"pyproject.toml", "setup.py", project["project"]["readme"], "LICENSE"}
    assert copied == needed | files
    assert all((ROOT / name).exists() for name in copied)
    extra = re.search(r"pip install .*'\.\[(\w+)\]'", "\n".join(lines))[1]
    assert extra in project["project"]["optional-dependencies"]
    assert f'ENTRYPOINT ["{next(iter(project["project"]["scripts"]))}"]' in lines


def test_readme_lists_every_script():
    page = (LAUNCH / "README.md").read_text()
    for name in [f"{name}.sh" for name in ARGUMENTS] + ["Containerfile"]:
        assert name in page
