#!/usr/bin/env bash
# Train on the CUDA devices of several machines with Slurm.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

usage() {
  cat <<'HELP'
usage: launch/slurm.sh --config FILE[:ARG] --workdir DIR --nodes N --devices N [options]
                       [-- --config.NAME=VALUE ...]

Submits a training with one process per CUDA device. This clone, the virtual environment, the data and the
workdir must be on a file system that all nodes share. A preempted job is requeued and resumes from its
checkpoint. A job saves 2 minutes before its time limit, and the next job of the chain resumes.

  --config FILE[:ARG]    name of a config, or config file in this clone
  --workdir DIR          folder of the run
  --nodes N              number of machines
  --devices N            number of CUDA devices per machine
  --data DIR             output of lcgcn prepare (default: data.dir of the config)
  --environment DIR      virtual environment with '.[cuda]' (default: .venv)
  --partition NAME, --account NAME
                         options of sbatch
  --time D-HH:MM:SS      time limit of each job (default: 1-00:00:00)
  --cpus N               CPU cores per device (default: 8)
  --jobs N               number of jobs in the chain (default: 1)
  --dry_run              print the commands without running them
  --help

example: launch/slurm.sh --config configs/w300_lcgcn_best.py --workdir runs/w300 --nodes 2 --devices 8
HELP
}

config='' workdir='' data='' nodes='' devices='' environment=.venv
partition='' account='' time=1-00:00:00 cpus=8 jobs=1
parse_options 'config workdir nodes devices data environment partition account time cpus jobs' '' "$@"
require config workdir nodes devices
for option in nodes devices cpus jobs; do
  require_match "--$option" "${!option}" '^[1-9][0-9]*$' 'a positive integer'
done
[[ -z $data ]] || overrides=("--config.data.dir=$data" "${overrides[@]}")

cd "$root"
"$dry_run" || [[ -x $environment/bin/lcgcn ]] ||
  fail "$environment: lcgcn is not installed; run python3 -m venv $environment && $environment/bin/pip install '.[cuda]'"
# A failed process ends the others, which would wait for it forever. A process that was stopped by a signal
# has saved and must not; srun cannot distinguish the two. Slurm also signals this shell, which has to wait.
# shellcheck disable=SC2016 # expanded by the shell of each process
process='trap : HUP INT TERM; "$@"; code=$?; case $code in 0 | 129 | 130 | 143) ;; *) scancel --signal KILL "$SLURM_JOB_ID.$SLURM_STEP_ID" ;; esac; exit "$code"'
# JAX assigns each process of a Slurm step the device with its local index.
train=(srun --kill-on-bad-exit=0 --cpus-per-task "$cpus" bash -c "$process" lcgcn "$environment/bin/lcgcn" train
  --config "$config" --workdir "$workdir" --distributed "${overrides[@]}")
submit=(sbatch --job-name "lcgcn-$(basename "$workdir")" --dependency singleton
  --nodes "$nodes" --ntasks-per-node "$devices" --gpus-per-node "$devices" --cpus-per-task "$cpus"
  --time "$time" --requeue --open-mode append --signal TERM@120 --output "$workdir.slurm.log")
[[ -z $partition ]] || submit+=(--partition "$partition")
[[ -z $account ]] || submit+=(--account "$account")
run mkdir -p "$(dirname "$workdir")"
for ((job = 0; job < jobs; job++)); do
  run "${submit[@]}" --wrap "$(printf '%q ' "${train[@]}")"
done
