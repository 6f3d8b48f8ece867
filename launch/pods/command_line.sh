# shellcheck shell=bash
# What the scripts beside it have in common: flags, errors of one line, quoting, --dry_run.
# It is sourced; it runs nothing.

if ((BASH_VERSINFO[0] * 10 + BASH_VERSINFO[1] < 44)); then
  printf 'error: bash 4.4 or newer is needed, this is %s\n' "$BASH_VERSION" >&2
  exit 2
fi
shopt -s inherit_errexit # an error in $(...) ends the script too
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
readonly ROOT
dry_run=no
launcher=() # what stands behind `--`: a launcher of ours and its flags

# fail WORD...: one line, and status 2, as our launchers leave on bad input.
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

say() { printf '%s\n' "$*" >&2; }

# quoted WORD...: the words as any POSIX shell has to be given them.
quoted() {
  local word line=""
  for word in "$@"; do
    if [[ ! "$word" =~ ^[A-Za-z0-9_@%+=:,./~-]+$ ]]; then
      word="'${word//\'/\'\\\'\'}'"
    fi
    line+="${line:+ }$word"
  done
  printf '%s' "$line"
}

# json WORD...: the words as JSON strings, a comma between them; such is YAML too.
json() {
  local word line=""
  for word in "$@"; do
    [[ "$word" != *[[:cntrl:]]* ]] || fail "an argument has a line break or another control character"
    word="${word//\\/\\\\}"
    line+="${line:+, }\"${word//\"/\\\"}\""
  done
  printf '%s' "$line"
}

# perform COMMAND...: runs it; under --dry_run prints it instead.
perform() {
  if [ "$dry_run" = yes ]; then
    quoted "$@"
    printf '\n'
  else
    "$@"
  fi
}

# explain FILE: the comment at the head of a script, which is its help.
explain() { sed -n '2,/^[^#]/{ /^#/!q; s/^# \{0,1\}//; p; }' "$1"; }

# read_flags NAMES WORD...: sets a variable of the same name for every --name=value and --name value;
# `name!` takes no value and becomes `yes`. What stands behind `--` becomes `launcher`.
read_flags() {
  local known=" $1 " word flag given # none of these may be the name of a flag
  shift
  while [ $# -gt 0 ]; do
    word="$1"
    shift
    if [ "$word" = -- ]; then
      launcher=("$@")
      return
    fi
    [[ "$word" == --* ]] || fail "$word: not a flag; what is to be run stands behind --"
    flag="${word#--}"
    flag="${flag%%=*}"
    if [[ "$known" == *" $flag! "* ]]; then
      [[ "$word" != *=* ]] || fail "--$flag takes no value"
      given=yes
    elif [[ "$known" != *" $flag "* ]]; then
      fail "--$flag: no such flag; those here are$(flags_shown "$known")"
    elif [[ "$word" == *=* ]]; then
      given="${word#*=}"
    else
      [ $# -gt 0 ] || fail "--$flag needs a value"
      given="$1"
      shift
    fi
    printf -v "$flag" '%s' "$given"
  done
}

flags_shown() {
  local flag
  for flag in $1; do printf ' --%s' "${flag%!}"; done
}

# goes_on STATUS: whether a launcher that left with it shall be started again, and goes on where it
# was: SIGTERM made it save (143), another host was lost (75), or process 0 (134). See
# kard_jax/core/exits.py.
goes_on() { [ "$1" = 143 ] || [ "$1" = 75 ] || [ "$1" = 134 ]; }

# need NAME WHAT: fails unless the variable has a value.
need() {
  [ -n "${!1:-}" ] || fail "--$1 is needed ($2); or set KARD_${1^^}"
}

# need_program NAME: fails unless it is there; a dry run needs none.
need_program() {
  [ "$dry_run" = yes ] || command -v "$1" >/dev/null || fail "$1 is not on the PATH"
}

# need_launcher: fails unless `launcher` begins with one of ours.
need_launcher() {
  [ ${#launcher[@]} -gt 0 ] ||
    fail "say what to run: -- launch/train.py --gin_file=... or -- launch/run.py --recipe=..."
  [[ "${launcher[0]}" =~ ^launch/[a-z]+\.py$ ]] && [ -f "$ROOT/${launcher[0]}" ] ||
    fail "${launcher[0]}: not a launcher of ours, such as launch/train.py"
}

# jax_pin: the JAX of requirements.txt, such as 0.10.2.
jax_pin() { sed -n 's/^jax==//p' "$ROOT/requirements.txt"; }
