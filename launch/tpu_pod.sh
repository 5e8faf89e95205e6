#!/usr/bin/env bash
# Train on a Cloud TPU slice, and request a new slice after a preemption.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/common.sh"

usage() {
  cat <<'HELP'
usage: launch/tpu_pod.sh --name NAME --zone ZONE --type TYPE --config FILE[:ARG] --workdir DIR --data DIR
                         (--bucket NAME | --nfs HOST:/PATH) [options] [-- --config.NAME=VALUE ...]

Requests a Cloud TPU slice (queued resource), installs the last commit of this clone on its machines, and
trains on all of them. The data and the workdir are in a bucket (gs://), or on an NFS server that each machine
mounts. The service account of the slice needs the role Storage Object User for the bucket. A preempted slice
is deleted and requested again; the run resumes from its last checkpoint. Requires gcloud with a default
project.

  --name NAME            name of the slice
  --zone ZONE            zone, such as us-west4-a
  --type TYPE            v4-8, v5litepod-16, v5p-8, v6e-16, ...
  --config FILE[:ARG]    name of a config, or config file in this clone
  --workdir DIR          folder of the run, relative to the bucket or NFS folder
  --data DIR             output of lcgcn prepare, relative to the bucket or NFS folder
  --bucket NAME          Cloud Storage bucket
  --nfs HOST:/PATH       NFS folder, such as a Filestore share
  --project PROJECT      Google Cloud project (default: that of gcloud)
  --runtime_version V    software version of the machines (default: by type)
  --spot                 spot slice: cheaper, can be preempted at any time
  --attempts N           maximum number of slices to request (default: 20)
  --keep                 keep the slice at the end
  --dry_run              print the commands without running them
  --help

example: launch/tpu_pod.sh --name lcgcn --zone us-west4-a --type v5litepod-16 --spot --bucket my-faces
           --data w300 --workdir runs/w300 --config configs/w300_lcgcn_best.py
HELP
}

name='' zone='' type='' config='' workdir='' data='' bucket='' nfs='' project='' runtime_version=''
spot=false attempts=20 keep=false
parse_options 'name zone type config workdir data bucket nfs project runtime_version attempts' \
  'spot keep' "$@"
require name zone type config workdir data
require_match --attempts "$attempts" '^[1-9][0-9]*$' 'a positive integer'
[[ -n $bucket || -n $nfs ]] || fail 'give --bucket NAME or --nfs HOST:/PATH'
[[ -z $bucket || -z $nfs ]] || fail 'give --bucket or --nfs, not both'
# These values are part of commands on the machines.
require_match --bucket "$bucket" '^[a-z0-9._-]*$' 'the name of a bucket'
require_match --nfs "$nfs" '^([A-Za-z0-9.-]+:/[A-Za-z0-9._/-]*)?$' 'HOST:/PATH'
for option in workdir data; do
  require_match "--$option" "${!option}" '^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$' \
    'a path inside the bucket or NFS folder'
done
if [[ -z $runtime_version ]]; then
  case $type in
    v2-* | v3-* | v4-*) runtime_version=tpu-ubuntu2204-base ;;
    v5litepod-*) runtime_version=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime_version=v2-alpha-tpuv5 ;;
    v6e-*) runtime_version=v2-alpha-tpuv6e ;;
    *) fail "--type $type: unknown type; give --runtime_version" ;;
  esac
fi

location=(--zone "$zone")
[[ -z $project ]] || location+=(--project "$project")
queue=(gcloud compute tpus queued-resources)
vm=(gcloud compute tpus tpu-vm)
poll_seconds=30

state() {
  "${queue[@]}" describe "$name" "${location[@]}" --format 'value(state.state)' 2>/dev/null || echo NONE
}

create() {
  local request=("${queue[@]}" create "$name" --node-id "$name" "${location[@]}"
    --accelerator-type "$type" --runtime-version "$runtime_version")
  ! "$spot" || request+=(--spot)
  run "${request[@]}"
}

delete() {
  run "${queue[@]}" delete "$name" "${location[@]}" --force --quiet
}

# Request the slice unless it exists, and wait until it is active.
obtain() {
  if "$dry_run"; then
    printf '# unless the slice exists:\n'
    create
    printf '# every %s s, until the state is ACTIVE:\n' "$poll_seconds"
    run "${queue[@]}" describe "$name" "${location[@]}" --format 'value(state.state)'
    return
  fi
  local current
  current=$(state)
  case $current in
    FAILED | SUSPEND*) delete && create ;;
    NONE) create ;;
  esac
  until [[ $(state) == ACTIVE ]]; do
    current=$(state)
    printf '%s: %s is %s\n' "$program" "$name" "$current"
    [[ $current != FAILED && $current != SUSPEND* && $current != NONE ]] || return 1
    sleep "$poll_seconds"
  done
}

on_all_machines() {
  run "${vm[@]}" ssh "$name" "${location[@]}" --worker all --command "$1"
}

# Install the package on each machine; repeatable. The images have Python 3.10; uv installs Python 3.12.
install() {
  local mount=true
  [[ -z $nfs ]] || mount="{ mountpoint -q ~/faces || sudo mount -t nfs $nfs ~/faces; }"
  run "${vm[@]}" scp "$archive" "$name:lcgcn.tar.gz" "${location[@]}" --worker all &&
    on_all_machines "mkdir -p ~/lcgcn ~/faces && tar -xzf ~/lcgcn.tar.gz -C ~/lcgcn && \
python3 -m pip install --quiet --user uv && \
python3 -m uv venv --quiet --allow-existing --python 3.12 ~/environment && \
python3 -m uv pip install --quiet --python ~/environment/bin/python ~/lcgcn'[tpu,gcs]' && \
$mount"
}

train() {
  local folder="gs://$bucket"
  [[ -z $nfs ]] || folder="\$HOME/faces"
  on_all_machines "cd ~/lcgcn && ~/environment/bin/lcgcn train --config $(printf %q "$config") --distributed \
--workdir $folder/$workdir --config.data.dir=$folder/$data ${overrides[*]@Q} && echo TRAINING FINISHED"
}

cd "$root"
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
archive=$scratch/lcgcn.tar.gz log=$scratch/log
! "$dry_run" || archive=lcgcn.tar.gz
run git archive --format tar.gz --output "$archive" HEAD

for ((attempt = 1; attempt <= attempts; attempt++)); do
  if obtain && install && train | tee "$log"; then
    if "$dry_run" || grep -q 'TRAINING FINISHED' "$log"; then
      "$keep" || delete
      ! "$dry_run" || printf '# after a preemption: delete the slice and repeat, up to %s times\n' "$attempts"
      exit 0
    fi
  fi
  sleep "$poll_seconds" # until a preemption is visible in the state
  if [[ $(state) == ACTIVE ]]; then
    printf '%s: the training failed, and %s was not preempted; the same command resumes it\n' \
      "$program" "$name" >&2
    exit 1
  fi
  printf '%s: %s was preempted (slice %d of %d)\n' "$program" "$name" "$attempt" "$attempts"
done
printf '%s: no slice lasted until the end of the training in %d attempts\n' "$program" "$attempts" >&2
exit 1
