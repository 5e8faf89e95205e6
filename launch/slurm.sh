#!/usr/bin/env bash
# Trains on CUDA devices of several machines, through Slurm.
set -euo pipefail
# shellcheck source=launch/running.sh
source "$(dirname "$0")/running.sh"

usage() {
  cat <<'HELP'
usage: launch/slurm.sh --config FILE[:ARG] --workdir DIR --nodes N --devices N [options]
                       [-- --config.NAME=VALUE ...]

Hands a training in to Slurm: one process for each CUDA device. This clone, the virtual environment, the
records and the folder of the run have to be on a disk that all nodes see. A job that is preempted goes
back into the queue, and goes on from its checkpoint; it is told 2 minutes before its time is over, saves,
and the next job of the chain goes on.

  --config FILE[:ARG]    config file of this clone
  --workdir DIR          folder of the run
  --nodes N              machines
  --devices N            CUDA devices in each
  --data DIR             records (lcgcn prepare); the config's by default
  --environment DIR      virtual environment with lcgcn and its extra `cuda` (.venv)
  --partition NAME, --account NAME
                         as sbatch takes them
  --time D-HH:MM:SS      limit of one job (1-00:00:00)
  --cpus N               processor cores for each device (8)
  --jobs N               jobs in the chain, one after another (1)
  --dry_run              print every command, run none
  --help

example: launch/slurm.sh --config configs/w300_lcgcn_best.py --workdir runs/w300 --nodes 2 --devices 8
HELP
}

config='' workdir='' data='' nodes='' devices='' environment=.venv
partition='' account='' time=1-00:00:00 cpus=8 jobs=1
parse_options 'config workdir nodes devices data environment partition account time cpus jobs' '' "$@"
require config workdir nodes devices
require_config "$config"
for option in nodes devices cpus jobs; do
  require_number "--$option" "${!option}"
done
require_match --time "$time" '^([0-9]+-)?[0-9]+(:[0-9]{2}){0,2}$' 'a time as sbatch takes it'
[[ -z $data ]] || overrides=("--config.data.dir=$data" "${overrides[@]}")

cd "$root"
"$dry_run" || [[ -x $environment/bin/lcgcn ]] ||
  refuse "$environment: no lcgcn in it; python3 -m venv $environment && $environment/bin/pip install '.[cuda]'"
# A failed process ends the others, which would wait for it. One that was stopped and saved (128 + signal)
# doesn't: srun cannot tell these apart. Slurm signals this shell too, which waits for the training.
# shellcheck disable=SC2016 # for the shell of each process
process='trap : HUP INT TERM; "$@"; code=$?; case $code in 0 | 129 | 130 | 143) ;; *) scancel --signal KILL "$SLURM_JOB_ID.$SLURM_STEP_ID" ;; esac; exit "$code"'
# JAX gives each process of a Slurm step the device of its own number on the node.
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
