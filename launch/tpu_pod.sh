#!/usr/bin/env bash
# Trains on a Cloud TPU slice, and gets a new one when it is preempted.
set -euo pipefail
# shellcheck source=launch/running.sh
source "$(dirname "$0")/running.sh"

usage() {
  cat <<'HELP'
usage: launch/tpu_pod.sh --name NAME --zone ZONE --type TYPE --config FILE[:ARG] --workdir DIR --data DIR
                         (--bucket NAME | --nfs HOST:/PATH) [options] [-- --config.NAME=VALUE ...]

Asks for a Cloud TPU slice (a queued resource), waits for it, copies the last commit of this clone to all of
its machines, installs it, and trains on all of them together. Records and run lie in a bucket or on an NFS
server, which each machine mounts: a slice that is preempted is deleted and asked for again, and the same
command goes on from the last checkpoint. Takes gcloud, with a project chosen.

  --name NAME            of the slice
  --zone ZONE            e.g. us-west4-a
  --type TYPE            v4-8, v5litepod-16, v5p-8, v6e-16, ...
  --config FILE[:ARG]    config file of this clone
  --workdir DIR          folder of the run, within the bucket or the NFS folder
  --data DIR             records (lcgcn prepare), within the bucket or the NFS folder
  --bucket NAME          Cloud Storage bucket, mounted by gcsfuse
  --nfs HOST:/PATH       NFS folder, such as a Filestore share
  --project PROJECT      gcloud's own by default
  --runtime_version V    image of the machines; by default the one of the type
  --spot                 a spot slice: cheaper, and preempted at any time
  --attempts N           slices to ask for, one after another (20)
  --keep                 do not delete the slice at the end
  --dry_run              print every command, run none
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
require_config "$config"
require_number --attempts "$attempts"
require_match --name "$name" '^[a-z]([a-z0-9-]*[a-z0-9])?$' 'small letters, digits and hyphens'
require_match --type "$type" '^v[0-9]+[a-z]*-[0-9]+$' 'a type such as v5litepod-16'
[[ -n $bucket || -n $nfs ]] || refuse 'give --bucket NAME or --nfs HOST:/PATH'
[[ -z $bucket || -z $nfs ]] || refuse 'give --bucket or --nfs, not both'
[[ -z $bucket ]] || require_match --bucket "$bucket" '^[a-z0-9][a-z0-9._-]+$' 'the name of a bucket'
[[ -z $nfs ]] || require_match --nfs "$nfs" '^[A-Za-z0-9.-]+:/[A-Za-z0-9._/-]*$' 'HOST:/PATH'
for option in workdir data; do
  [[ /${!option} =~ ^(/[A-Za-z0-9_][A-Za-z0-9._-]*)+$ ]] ||
    refuse "--$option '${!option}': not a path within the bucket or the NFS folder"
done
if [[ -z $runtime_version ]]; then
  case $type in
    v2-* | v3-* | v4-*) runtime_version=tpu-ubuntu2204-base ;;
    v5litepod-*) runtime_version=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime_version=v2-alpha-tpuv5 ;;
    v6e-*) runtime_version=v2-alpha-tpuv6e ;;
    *) refuse "--type $type: its image is not known here; give --runtime_version" ;;
  esac
fi

place=(--zone "$zone")
[[ -z $project ]] || place+=(--project "$project")
queue=(gcloud compute tpus queued-resources)
vm=(gcloud compute tpus tpu-vm)
every_seconds=30

state() {
  "${queue[@]}" describe "$name" "${place[@]}" --format 'value(state.state)' 2>/dev/null || echo NONE
}

create() {
  local request=("${queue[@]}" create "$name" --node-id "$name" "${place[@]}"
    --accelerator-type "$type" --runtime-version "$runtime_version")
  ! "$spot" || request+=(--spot)
  run "${request[@]}"
}

delete() {
  run "${queue[@]}" delete "$name" "${place[@]}" --force --quiet
}

# Asks for the slice where there is none, and waits until it is there; fails where it will not come.
obtain() {
  if "$dry_run"; then
    would "unless there is such a slice already:"
    create
    would "wait until its state is ACTIVE, asked for every $every_seconds s:"
    run "${queue[@]}" describe "$name" "${place[@]}" --format 'value(state.state)'
    return
  fi
  local now
  now=$(state)
  case $now in
    FAILED | SUSPEND*) delete && create ;;
    NONE) create ;;
  esac
  until [[ $(state) == ACTIVE ]]; do
    now=$(state)
    printf '%s: %s is %s\n' "$program" "$name" "$now"
    [[ $now != FAILED && $now != SUSPEND* && $now != NONE ]] || return 1
    sleep "$every_seconds"
  done
}

everywhere() {
  run "${vm[@]}" ssh "$name" "${place[@]}" --worker all --command "$1"
}

# What is needed on each machine; all of it may be there already.
install_everywhere() {
  local mount="sudo mount -t nfs $nfs ~/faces"
  # Orbax finishes a checkpoint by renaming its folder. The images have Python 3.10, and uv brings another.
  [[ -z $bucket ]] || mount="gcsfuse --implicit-dirs --rename-dir-limit 100000 $bucket ~/faces"
  run "${vm[@]}" scp "$archive" "$name:lcgcn.tar.gz" "${place[@]}" --worker all &&
    everywhere "mkdir -p ~/lcgcn ~/faces && tar -xzf ~/lcgcn.tar.gz -C ~/lcgcn && \
python3 -m pip install --quiet --user uv && \
python3 -m uv venv --quiet --allow-existing --python 3.12 ~/environment && \
python3 -m uv pip install --quiet --python ~/environment/bin/python ~/lcgcn'[tpu]' && \
{ mountpoint -q ~/faces || $mount; }"
}

train_everywhere() {
  everywhere "cd ~/lcgcn && ~/environment/bin/lcgcn train --config $(printf %q "$config") --distributed \
--workdir ~/faces/$workdir --config.data.dir=\$HOME/faces/$data ${overrides[*]@Q}"
}

cd "$root"
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
archive=$scratch/lcgcn.tar.gz log=$scratch/log
! "$dry_run" || archive=lcgcn.tar.gz
run git archive --format tar.gz --output "$archive" HEAD

for ((attempt = 1; attempt <= attempts; attempt++)); do
  if obtain && install_everywhere && train_everywhere | tee "$log"; then
    # A run that was stopped saves and exits with 143; only a finished one prints this line.
    if "$dry_run" || grep -q 'done; best model' "$log"; then
      "$keep" || delete
      ! "$dry_run" || would "where it was preempted: delete it, and from the start, up to $attempts slices"
      exit 0
    fi
  fi
  sleep "$every_seconds" # until a preemption shows in the state
  if [[ $(state) == ACTIVE ]]; then
    printf '%s: the training ended, and %s was not preempted; the same command goes on\n' \
      "$program" "$name" >&2
    exit 1
  fi
  printf '%s: %s is gone; slice %d of %d was this\n' "$program" "$name" "$attempt" "$attempts"
done
printf '%s: no slice lasted to the end of the training in %d attempts\n' "$program" "$attempts" >&2
exit 1
