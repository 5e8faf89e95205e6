#!/usr/bin/env bash
# Build the container, and train in it on the CUDA devices of this machine.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

usage() {
  cat <<'HELP'
usage: launch/container.sh --config FILE[:ARG] --workdir DIR --data DIR [options]
                           [-- --config.NAME=VALUE ...]

Builds launch/Containerfile, and trains in the container. The same command resumes from the last checkpoint.
Requires NVIDIA driver 580 or newer, and the NVIDIA container toolkit.

  --config FILE[:ARG]    name of a config, or config file in this clone
  --workdir DIR          folder of the run on this machine
  --data DIR             output of lcgcn prepare on this machine
  --engine COMMAND       docker or podman (default: docker)
  --image NAME           name of the image (default: lcgcn)
  --dry_run              print the commands without running them
  --help

example: launch/container.sh --config configs/w300_lcgcn_best.py --workdir runs/w300 --data data/w300
HELP
}

config='' workdir='' data='' engine=docker image=lcgcn
parse_options 'config workdir data engine image' '' "$@"
require config workdir data
require_match --engine "$engine" '^(docker|podman)$' 'docker or podman'
"$dry_run" || [[ -d $data ]] || fail "--data $data: no such folder"

# The engine would create a missing folder as root.
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
