#!/usr/bin/env bash
# Trains on the CUDA devices of this machine.
set -euo pipefail
# shellcheck source=launch/running.sh
source "$(dirname "$0")/running.sh"

usage() {
  cat <<'HELP'
usage: launch/cuda.sh --config FILE[:ARG] --workdir DIR [options] [-- --config.NAME=VALUE ...]

Installs lcgcn into a virtual environment of this clone, and trains on all CUDA devices of this machine.
The same command goes on from the last checkpoint. Needs NVIDIA driver 580 or newer; CUDA 13 itself comes with JAX.

  --config FILE[:ARG]    config file of this clone
  --workdir DIR          folder of the run
  --data DIR             records (lcgcn prepare); the config's by default
  --devices 0,1,...      which of the CUDA devices; all by default
  --environment DIR      the virtual environment, made if it is not there (.venv)
  --python COMMAND       Python 3.11 or newer to make it with (python3)
  --dry_run              print every command, run none
  --help

example: launch/cuda.sh --config configs/w300_lcgcn_best.py --workdir runs/w300 -- --config.seed=1
HELP
}

config='' workdir='' data='' devices='' environment=.venv python=python3
parse_options 'config workdir data devices environment python' '' "$@"
require config workdir
require_config "$config"
[[ -z $devices ]] || require_match --devices "$devices" '^[0-9]+(,[0-9]+)*$' 'numbers with commas'
[[ -z $data ]] || overrides=("--config.data.dir=$data" "${overrides[@]}")

cd "$root"
run nvidia-smi --list-gpus
if "$dry_run" || [[ ! -x $environment/bin/python ]]; then
  run "$python" -m venv "$environment"
fi
run "$environment/bin/python" -m pip install --quiet '.[cuda]'
[[ -z $devices ]] || run export "CUDA_VISIBLE_DEVICES=$devices"
run "$environment/bin/lcgcn" train --config "$config" --workdir "$workdir" "${overrides[@]}"
