# shellcheck shell=bash
# What the scripts of this folder share: refusing, checking, and running or only showing a command.

program=${0##*/}
dry_run=false
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# One line and exit code 2, for a mistake of the user.
refuse() {
  printf '%s: error: %s; see %s --help\n' "$program" "$1" "$program" >&2
  exit 2
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || refuse "bash $BASH_VERSION: 4.4 is needed"

# parse_options "NAMES" "FLAGS" WORD...: sets the variables of these names, flags to true, and `overrides` to
# what stands behind --.
parse_options() {
  local values=" $1 " flags=" $2 dry_run " key
  shift 2
  overrides=()
  while (($#)); do
    [[ $1 != --*=* ]] || set -- "${1%%=*}" "${1#*=}" "${@:2}"
    key=${1#--}
    if [[ $1 == -- ]]; then
      overrides=("${@:2}")
      break
    elif [[ $1 == --help ]]; then
      usage
      exit
    elif [[ $1 == --* && $flags == *" $key "* ]]; then
      printf -v "$key" true
      shift
    elif [[ $1 == --* && $values == *" $key "* ]]; then
      [[ $# -ge 2 && -n $2 && $2 != --* ]] || refuse "$1: a value is missing"
      printf -v "$key" %s "$2"
      shift 2
    else
      refuse "unknown option $1"
    fi
  done
  local word
  for word in "${overrides[@]}"; do
    [[ $word == --config.*=* ]] || refuse "$word: behind -- there are only --config.NAME=VALUE"
  done
}

# require NAME...: these options were given.
require() {
  local key
  for key in "$@"; do
    [[ -n ${!key} ]] || refuse "--$key is missing"
  done
}

# require_number OPTION VALUE: a whole number of at least 1.
require_number() {
  [[ $2 =~ ^[1-9][0-9]*$ ]] || refuse "$1 $2: not a whole number of at least 1"
}

# require_match OPTION VALUE REGEX WHAT_IT_SHOULD_BE
require_match() {
  [[ $2 =~ $3 ]] || refuse "$1 '$2': not $4"
}

# require_config VALUE: a config file of this clone, perhaps with an argument behind a colon.
require_config() {
  [[ -f $root/${1%%:*} ]] || refuse "--config ${1%%:*}: no such file in $root"
}

# Says what would be done, in a dry run.
would() {
  printf '# %s\n' "$1"
}

# Runs a command, or in a dry run prints it, to be pasted into a shell as it is.
run() {
  if "$dry_run"; then
    printf '%q ' "$@" | sed 's/ $//'
    printf '\n'
  else
    "$@"
  fi
}
