#!/usr/bin/env bash
# Builds the container, and trains in it on the CUDA devices of this machine.
set -euo pipefail
# shellcheck source=launch/running.sh
source "$(dirname "$0")/running.sh"

usage() {
  cat <<'HELP'
usage: launch/container.sh --config FILE[:ARG] --workdir DIR --data DIR [options]
                           [-- --config.NAME=VALUE ...]

Builds launch/Containerfile, and trains in it. The same command goes on from the last checkpoint. Takes
NVIDIA's driver and its container toolkit.

  --config FILE[:ARG]    config file of this clone
  --workdir DIR          folder of the run, on this machine
  --data DIR             records (lcgcn prepare), on this machine
  --engine COMMAND       docker or podman (docker)
  --image NAME           name of the image (lcgcn)
  --dry_run              print every command, run none
  --help

example: launch/container.sh --config configs/w300_lcgcn_best.py --workdir runs/w300 --data data/w300
HELP
}

config='' workdir='' data='' engine=docker image=lcgcn
parse_options 'config workdir data engine image' '' "$@"
require config workdir data
require_config "$config"
require_match --engine "$engine" '^(docker|podman)$' 'docker or podman'
require_match --image "$image" '^[a-z0-9][a-z0-9._/:-]*$' 'the name of an image'
"$dry_run" || [[ -d $data ]] || refuse "--data $data: no such folder"

# A run's folder has to be there before it is mounted, or the engine makes it as root.
run mkdir -p "$workdir"
if [[ $engine == docker ]]; then
  devices=(--gpus all --user "$(id -u):$(id -g)")
else
  devices=(--device nvidia.com/gpu=all --userns keep-id)
fi
inside=/runs/$(basename "$workdir")
run "$engine" build --file "$root/launch/Containerfile" --tag "$image" "$root"
run "$engine" run --rm --init --ipc host "${devices[@]}" \
  --volume "$(realpath -m "$data"):/data:ro" --volume "$(realpath -m "$workdir"):$inside" \
  --volume lcgcn-cache:/cache "$image" \
  train --config "$config" --workdir "$inside" --config.data.dir=/data "${overrides[@]}"
