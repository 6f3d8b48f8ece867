#!/usr/bin/env bash
# What tpu.sh runs on each worker of a slice; slurm users set up their environment with it too.
#
# worker.sh install tpu|gpu      .venv here: requirements.txt, and JAX for the accelerator
# worker.sh mount BUCKET FOLDER  a Cloud Storage bucket as a folder
# worker.sh start LAUNCHER ...   starts a launcher that outlives this shell; one at a time
# worker.sh status               none, running, or ended and its exit status
# worker.sh log [LINES]          the end of what it printed; 0 follows until it ends
# worker.sh stop                 SIGTERM: it saves and leaves
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/command_line.sh"

# Outside the checkout, which `install` replaces.
readonly JOB="${KARD_JOB:-$HOME/kard_job}"
readonly SECRETS="$HOME/.kard_env"
readonly UV="uv==0.13.8" # brings a Python where the machine's is too old (TPU images have 3.10)

install() {
  local accelerator="$1" extra
  case "$accelerator" in
    tpu) extra="jax[tpu]" ;;
    gpu) extra="jax[cuda12]" ;;
    *) fail "install $accelerator: tpu or gpu" ;;
  esac
  cd "$ROOT"
  python3 -m pip install --quiet --user "$UV"
  [ -x .venv/bin/python ] || python3 -m uv venv --quiet --python 3.11 .venv
  python3 -m uv pip install --quiet --python .venv/bin/python \
    --requirement requirements.txt "$extra==$(jax_pin)"
  say "$(hostname): ready"
}

mount() {
  local bucket="$1" folder="$2"
  if mountpoint --quiet "$folder"; then
    return
  fi
  if ! command -v gcsfuse >/dev/null; then
    local source=https://packages.cloud.google.com/apt
    curl --fail --silent --show-error "$source/doc/apt-key.gpg" |
      sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
    printf 'deb [signed-by=/usr/share/keyrings/cloud.google.asc] %s gcsfuse-%s main\n' \
      "$source" "$(lsb_release --codename --short)" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get update --quiet=2
    sudo apt-get install --yes --quiet=2 gcsfuse
  fi
  sudo mkdir -p "$folder"
  sudo chown "$(id -u):$(id -g)" "$folder"
  # Hosts wait for files that another host writes: none may be remembered as missing.
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --rename-dir-limit=1000000 "$bucket" "$folder"
}

pid() { cat "$JOB/pid" 2>/dev/null || true; }

is_running() { [ -n "$(pid)" ] && kill -0 "$(pid)" 2>/dev/null; }

start() {
  launcher=("$@")
  need_launcher
  if is_running; then
    fail "a launcher runs on $(hostname) already; stop it first"
  fi
  mkdir -p "$JOB"
  [ ! -f "$JOB/log" ] || mv "$JOB/log" "$JOB/log.before"
  rm -f "$JOB/status" "$JOB/pid"
  cd "$ROOT"
  [ -x .venv/bin/python ] || fail "no .venv on $(hostname): install first"
  # A session of its own, so that it outlives ssh, and a group that one signal reaches.
  # shellcheck disable=SC2016 # the inner shell expands these
  env "KARD_JOB=$JOB" "KARD_SECRETS=$SECRETS" setsid bash -c '
    echo "$$" >"$KARD_JOB/pid"
    if [ -f "$KARD_SECRETS" ]; then set -a; . "$KARD_SECRETS"; set +a; fi
    trap : TERM # the launcher answers it; its status is written here
    .venv/bin/python -u "$@" && status=0 || status=$?
    echo "$status" >"$KARD_JOB/status.part" && mv "$KARD_JOB/status.part" "$KARD_JOB/status"
  ' worker "${launcher[@]}" >"$JOB/log" 2>&1 </dev/null &
  while [ ! -s "$JOB/pid" ]; do sleep 0.05; done # so that `status` knows of it
  say "$(hostname): started"
}

status() {
  if [ -f "$JOB/status" ]; then
    printf 'ended %s\n' "$(cat "$JOB/status")"
  elif is_running; then
    printf 'running\n'
  elif [ -n "$(pid)" ]; then
    printf 'ended 137\n' # killed before it could say so
  else
    printf 'none\n'
  fi
}

log() {
  [ -f "$JOB/log" ] || fail "no log on $(hostname): nothing was started"
  if [ "${1:-20}" = 0 ]; then
    if is_running; then
      tail --lines=+1 --follow --sleep-interval=0.2 --pid="$(pid)" "$JOB/log"
    else
      cat "$JOB/log"
    fi
  else
    tail --lines="${1:-20}" "$JOB/log"
  fi
}

stop() {
  if is_running; then
    kill -TERM -- "-$(pid)"
  fi
}

case "${1:-}" in
  install) [ $# = 2 ] || fail "install tpu, or install gpu"; install "$2" ;;
  mount) [ $# = 3 ] || fail "mount BUCKET FOLDER"; mount "$2" "$3" ;;
  start) shift; start "$@" ;;
  status) status ;;
  log) log "${2:-20}" ;;
  stop) stop ;;
  --help) explain "${BASH_SOURCE[0]}" ;;
  *) fail "worker.sh install, mount, start, status, log or stop" ;;
esac
