#!/usr/bin/env bash
# Train and measure on one GPU, within the time of a short lease.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "$0")/../launch/common.sh"

usage() {
  cat <<'HELP'
usage: benchmarks/gpu.sh --out DIR [options] [-- --config.NAME=VALUE ...]

Trains for some minutes, then compares with PyTorch, profiles the training step, tries larger batches, and
measures the input pipeline, all on the GPU that JAX uses. Each step has its own time limit and its own files
in DIR, so a step that fails or is stopped does not affect the others. Options after -- are for the training;
paths in them, in --config and in --python are relative to the clone.

  --out DIR              folder for the results: JSON files, the output of each step, the trained model
  --data DIR             output of lcgcn prepare (default: synthetic faces, without training)
  --config FILE[:ARG]    config file (default: configs/w300_lcgcn_best.py)
  --train_minutes N      minutes of training with --data; 0: none (default: 4)
  --step_minutes N       limit of each measurement in minutes (default: 2)
  --batch_sizes N,...    batches of the training step (default: 128,256,512)
  --workers N,...        worker processes of the input pipeline (default: 4,8,14)
  --python COMMAND       Python with lcgcn_jax and PyTorch (default: python3)
  --small                tiny network and few repetitions, to try the script on a CPU
  --dry_run              print the commands without running them
  --help

example: benchmarks/gpu.sh --out results --data data/w300 --train_minutes 8 -- --config.init_from=runs/small
HELP
}

out='' data='' config=configs/w300_lcgcn_best.py train_minutes=4 step_minutes=2 batch_sizes=128,256,512
workers=4,8,14 python=python3 small=false
parse_options 'out data config train_minutes step_minutes batch_sizes workers python' small "$@"
require out config
require_match --train_minutes "$train_minutes" '^(0|[1-9][0-9]*)$' 'a whole number of minutes'
require_match --step_minutes "$step_minutes" '^[1-9][0-9]*$' 'a whole number of minutes, at least 1'
for option in batch_sizes workers; do
  require_match "--$option" "${!option}" '^[0-9]+(,[0-9]+)*$' 'whole numbers, separated by commas'
done

out=$(realpath -m "$out")
[[ -z $data ]] || data=$(realpath -m "$data")
"$dry_run" || mkdir -p "$out"
cd "$root"
export PYTHONUNBUFFERED=1 PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
failed=()

# step NAME MINUTES COMMAND...: run a command with a time limit, and keep its output in NAME.txt. The signal at
# the limit makes a training save its checkpoint.
step() {
  local name=$1 minutes=$2 status=0
  shift 2
  printf '== %s\n' "$name"
  if "$dry_run"; then
    run timeout --signal TERM --kill-after 30 "$minutes"m "$@"
    return
  fi
  timeout --signal TERM --kill-after 30 "$minutes"m "$@" >"$out/$name.txt" 2>&1 || status=$?
  tail -n 25 "$out/$name.txt"
  # A training that was stopped at its limit exits with 143, or 124 by way of `timeout`.
  if [[ $status -ne 0 && ! ($name == train && ($status -eq 124 || $status -eq 143)) ]]; then
    failed+=("$name (exit code $status)")
  fi
}

compare=() variants=() bench=(--only "train_step,end_to_end,stages,pipeline")
if "$small"; then
  compare=(--arch tiny --image_size 64 --batch_sizes 1 --train_batch_size 2 --repetitions 2 --only inference)
  variants=(--repetitions 2 --config.model.heatmap.arch=tiny --config.data.image_size=64)
  bench+=(--repetitions 2 --config.model.heatmap.arch=tiny --config.data.image_size=64)
fi
IFS=, read -ra sizes <<<"$batch_sizes"
names=$(printf 'train.batch_size=%s,' "${sizes[@]}")

if [[ -n $data && $train_minutes -gt 0 ]]; then
  step train "$train_minutes" "$python" -m lcgcn_jax train --config "$config" --workdir "$out/run" \
    "--config.data.dir=$data" "${overrides[@]}"
  step save_model 1 "$python" -c 'import pathlib, sys
from lcgcn_jax.models.bundles import load_bundle, save_bundle
save_bundle(pathlib.Path(sys.argv[2]), load_bundle(sys.argv[1]), "", dtype="float16")' \
    "$out/run" "$out/model"
fi
step compare_libraries "$step_minutes" "$python" benchmarks/compare_libraries.py "${compare[@]}" \
  --json "$out/compare_libraries.json"
step step_variants "$step_minutes" "$python" benchmarks/step_variants.py --config "$config" \
  --variants "${names%,}" --json "$out/step_variants.json" "${variants[@]}"
step bench "$step_minutes" "$python" -m lcgcn_jax bench --config "$config" ${data:+--data "$data"} \
  --workers "$workers" --json "$out/bench.json" --overwrite "${bench[@]}"

if ((${#failed[@]})); then
  printf '%s: failed: %s; see %s\n' "$program" "${failed[*]}" "$out" >&2
  exit 1
fi
