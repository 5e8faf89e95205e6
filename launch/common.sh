# shellcheck shell=bash
# Functions of the launch scripts: options, checks, and commands that a dry run only prints.

program=${0##*/}
dry_run=false
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# Report a usage error in one line, and exit with code 2.
fail() {
  printf '%s: error: %s; see %s --help\n' "$program" "$1" "$program" >&2
  exit 2
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || fail "bash $BASH_VERSION is too old; 4.4 is required"

# parse_options "NAMES" "FLAGS" ARGUMENT...: set the variables NAMES to their values, FLAGS to true, and
# `overrides` to the arguments after --.
parse_options() {
  local names=" $1 " flags=" $2 dry_run " key override
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
    elif [[ $1 == --* && $names == *" $key "* ]]; then
      [[ $# -ge 2 && -n $2 && $2 != --* ]] || fail "$1: the value is missing"
      printf -v "$key" %s "$2"
      shift 2
    else
      fail "unknown option $1"
    fi
  done
  for override in "${overrides[@]}"; do
    [[ $override == --config.*=* ]] || fail "$override: only --config.NAME=VALUE may follow --"
  done
}

# require NAME...: check that options are set, and that --config is a file or a config of the project.
require() {
  local key file
  for key in "$@"; do
    [[ -n ${!key} ]] || fail "--$key is missing"
    file=${!key%%:*}
    [[ $key != config || -f $root/$file || -f $root/configs/$file.py ]] ||
      fail "--config $root/$file: no such file"
  done
}

# require_match OPTION VALUE REGEX DESCRIPTION
require_match() {
  [[ $2 =~ $3 ]] || fail "$1 '$2': expected $4"
}

# Run a command. A dry run prints it instead, quoted for a shell.
run() {
  if "$dry_run"; then
    printf '%q ' "$@" | sed 's/ $//'
    printf '\n'
  else
    "$@"
  fi
}
