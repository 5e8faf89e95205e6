#!/usr/bin/env bash
# Train on the CUDA devices of this machine.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

usage() {
  cat <<'HELP'
usage: launch/cuda.sh --config FILE[:ARG] --workdir DIR [options] [-- --config.NAME=VALUE ...]

Installs lcgcn into a virtual environment, and trains on the CUDA devices of this machine. The same command
resumes from the last checkpoint. Requires NVIDIA driver 580 or newer; CUDA 13 is installed with JAX.

  --config FILE[:ARG]    name of a config, or config file in this clone
  --workdir DIR          folder of the run
  --data DIR             output of lcgcn prepare (default: data.dir of the config)
  --devices 0,1,...      CUDA devices to use (default: all)
  --environment DIR      virtual environment, created if it does not exist (default: .venv)
  --python COMMAND       Python 3.11 or newer for the virtual environment (default: python3)
  --dry_run              print the commands without running them
  --help

example: launch/cuda.sh --config configs/w300_lcgcn_best.py --workdir runs/w300 -- --config.seed=1
HELP
}

config='' workdir='' data='' devices='' environment=.venv python=python3
parse_options 'config workdir data devices environment python' '' "$@"
require config workdir
[[ -z $data ]] || overrides=("--config.data.dir=$data" "${overrides[@]}")

cd "$root"
run nvidia-smi --list-gpus
if "$dry_run" || [[ ! -x $environment/bin/python ]]; then
  run "$python" -m venv "$environment"
fi
run "$environment/bin/python" -m pip install --quiet '.[cuda]'
[[ -z $devices ]] || run export "CUDA_VISIBLE_DEVICES=$devices"
run "$environment/bin/lcgcn" train --config "$config" --workdir "$workdir" "${overrides[@]}"
