#!/usr/bin/env bash
# A TPU slice from queued resource to deletion, and our launchers on all its workers.
#
# launch/pods/tpu.sh COMMAND [FLAGS] [-- LAUNCHER ARGUMENT...]
#
#   create   asks for the slice: it waits in a queue
#   wait     returns when the slice is there
#   install  this checkout and its requirements, on every worker; mounts the bucket
#   run      starts a launcher on every worker; it goes on when this terminal closes
#   logs     what worker 0 prints, until it ends
#   watch    returns when the launcher has ended on all workers, with its exit status
#   status   state of the slice, and of the launcher on each worker
#   stop     SIGTERM to the launcher: it saves and leaves
#   delete   gives the slice back
#   all      all of this; starts anew after a preemption; deletes the slice whatever happens
#
# Flags, or variables of the same names, such as KARD_PROJECT:
#   --project=ID       Google Cloud project
#   --zone=ZONE        one that has such TPUs
#   --name=NAME        of queued resource and slice; kard unless given
#   --type=TYPE        v5e-16 unless given; v4-8, v5p-128, v6e-64, ...
#   --bucket=NAME      Cloud Storage bucket, mounted as /bucket on every worker
#   --env_file=FILE    lines NAME=value for the launcher, such as WANDB_API_KEY; copied, never shown
#   --service_account=EMAIL    of the workers
#   --runtime_version=VERSION  the workers' image; that of the type unless given
#   --worker=N         whose log; all prints the last lines of each
#   --restarts=N       how often `all` starts anew after preemptions; 20 unless given
#   --spot, --reserved         cheaper and preemptible, or from your reservation
#   --keep             `all` does not delete the slice
#   --dry_run          prints the commands that would be run
#
# Example:
#   launch/pods/tpu.sh all --project=mine --zone=us-west4-a --bucket=mine-kard --spot \
#     -- launch/train.py --gin_file=gin_configs/recipes/quickstart/6_student_kard.gin \
#     --gin.WORKDIR="'/bucket/quickstart'"
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/command_line.sh"

readonly FOLDER=/bucket
readonly WORKER=kard_jax/launch/pods/worker.sh # below each worker's home
readonly GONE=69                               # the slice is no more: preempted, or deleted
readonly POLL="${KARD_POLL:-30}"               # seconds

project="${KARD_PROJECT:-${CLOUDSDK_CORE_PROJECT:-}}"
zone="${KARD_ZONE:-${CLOUDSDK_COMPUTE_ZONE:-}}"
name="${KARD_NAME:-kard}"
type="${KARD_TYPE:-v5e-16}"
bucket="${KARD_BUCKET:-}"
env_file="${KARD_ENV_FILE:-}"
service_account="${KARD_SERVICE_ACCOUNT:-}"
runtime_version="${KARD_RUNTIME_VERSION:-}"
worker=0
restarts=20
spot=no
reserved=no
keep=no

# accelerator_type: Cloud's name for a slice that we call by its chips' generation, v5e-16.
accelerator_type() {
  case "$type" in
    v5e-*) printf 'v5litepod-%s' "${type#v5e-}" ;;
    *) printf '%s' "$type" ;;
  esac
}

image() {
  if [ -n "$runtime_version" ]; then
    printf '%s' "$runtime_version"
    return
  fi
  case "$(accelerator_type)" in
    v2-* | v3-* | v4-*) printf 'tpu-ubuntu2204-base' ;;
    v5litepod-*) printf 'v2-alpha-tpuv5-lite' ;;
    v5p-*) printf 'v2-alpha-tpuv5' ;;
    v6e-*) printf 'v2-alpha-tpuv6e' ;;
    *) fail "--type=$type: not a type known here, such as v5e-16; give --runtime_version too" ;;
  esac
}

place=() # filled in by `main`

# on_workers WORKERS COMMAND_LINE: the line is read by a shell there; see `quoted`.
on_workers() {
  perform gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" "--worker=$1" "--command=$2"
}

copy() {
  perform gcloud compute tpus tpu-vm scp "$1" "$name:$2" "${place[@]}" --worker=all
}

create() {
  local options=("--accelerator-type=$(accelerator_type)" "--runtime-version=$(image)")
  [ "$spot" = no ] || options+=(--spot)
  [ "$reserved" = no ] || options+=(--reserved)
  [ -z "$service_account" ] || options+=("--service-account=$service_account")
  perform gcloud compute tpus queued-resources create "$name" "${place[@]}" "--node-id=$name" \
    "${options[@]}"
}

state() {
  perform gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
    "--format=value(state.state)"
}

await() {
  local now before=""
  while true; do
    now="$(state)" || fail "there is no queued resource $name in $zone; create it first"
    if [ "$dry_run" = yes ]; then
      printf '%s\n' "$now"
      return
    fi
    [ "$now" = "$before" ] || say "$(date +%H:%M:%S) $name: $now"
    before="$now"
    case "$now" in
      ACTIVE) return ;;
      FAILED | SUSPEND* | DELETING)
        fail "$name is $now: delete it, and create it again (describe it with gcloud to see why)"
        ;;
    esac
    sleep "$POLL"
  done
}

install() {
  local scratch
  [ -z "$env_file" ] || [ -f "$env_file" ] || fail "--env_file=$env_file: no such file"
  scratch="$(mktemp -d)"
  if [ "$dry_run" = no ]; then
    git -C "$ROOT" ls-files -z --cached --others --exclude-standard |
      tar -C "$ROOT" --create --gzip --ignore-failed-read --null --files-from=- \
        --file="$scratch/kard_jax.tgz"
  fi
  (cd "$scratch" && copy kard_jax.tgz kard_jax.tgz)
  rm -r "$scratch"
  [ -z "$env_file" ] || copy "$env_file" .kard_env
  local line="mkdir -p kard_jax && tar -xzf kard_jax.tgz -C kard_jax"
  [ -z "$env_file" ] || line+=" && chmod 600 .kard_env"
  line+=" && $WORKER install tpu"
  [ -z "$bucket" ] || line+=" && $WORKER mount $(quoted "$bucket") $FOLDER"
  on_workers all "$line"
}

run() { on_workers all "$(quoted "$WORKER" start "${launcher[@]}")"; }

logs() {
  if [ "$worker" = all ]; then
    on_workers all "$WORKER log 20"
  else
    on_workers "$worker" "$WORKER log 0"
  fi
}

job_states() { on_workers all "$WORKER status"; }

# watch: 0 or the status of the launcher that failed; $GONE where the slice is no more.
watch() {
  local states now
  while true; do
    now="$(state || true)"
    if [ "$dry_run" = yes ]; then
      printf '%s\n' "$now"
      job_states
      return
    fi
    if [ "$now" != ACTIVE ]; then
      say "$name is ${now:-no more}"
      return "$GONE"
    fi
    if states="$(job_states | grep -E '^(none|running|ended [0-9]+)$')"; then
      if ! grep -q '^running$' <<<"$states"; then
        break
      fi
    fi
    sleep "$POLL"
  done
  if grep -q '^none$' <<<"$states"; then
    fail "the launcher was not started on every worker; run it again"
  fi
  # A host that only lost the others ends with a larger status than the one that began it.
  local worst
  worst="$(sed -n 's/^ended //p' <<<"$states" | grep -v '^0$' | sort --numeric-sort | head -n 1)" || true
  say "$name: the launcher ended with status ${worst:-0}"
  return "${worst:-0}"
}

delete() {
  perform gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
}

all() {
  local status=0 left="$restarts"
  [ "$keep" = yes ] || trap delete EXIT
  trap 'exit 130' INT TERM HUP # by way of EXIT
  begin
  while true; do
    logs || true # a broken connection ends no job
    status=0
    watch || status=$?
    [ "$status" = "$GONE" ] || goes_on "$status" || exit "$status"
    [ "$left" -gt 0 ] || fail "preempted more than --restarts=$restarts times"
    left=$((left - 1))
    say "$name: goes on at the last checkpoint; $left restarts left"
    if [ "$status" = "$GONE" ]; then
      delete || true
      begin
    else
      run
    fi
  done
}

begin() {
  create
  await
  install
  run
}

status() {
  state
  job_states
}

main() {
  local command="${1:-}"
  case "$command" in
    --help | "") explain "${BASH_SOURCE[0]}"; return ;;
    create | wait | install | run | logs | watch | status | stop | delete | all) shift ;;
    *) fail "$command: not a command; --help lists them" ;;
  esac
  read_flags "project zone name type bucket env_file service_account runtime_version worker \
    restarts spot! reserved! keep! dry_run!" "$@"
  need project "the Google Cloud project's id"
  need zone "one that has TPUs of the type, such as us-west4-a"
  [[ "$name" =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] || fail "--name=$name: lower case, digits and -"
  [[ "$restarts" =~ ^[0-9]+$ ]] || fail "--restarts=$restarts: a number is needed"
  [ "$spot$reserved" != yesyes ] || fail "--spot and --reserved exclude each other"
  case "$command" in
    run | all) need_launcher ;;
    *) [ ${#launcher[@]} = 0 ] || fail "$command runs no launcher; leave out what stands behind --" ;;
  esac
  image >/dev/null
  need_program gcloud
  place=("--project=$project" "--zone=$zone")
  case "$command" in
    wait) await ;;
    stop) on_workers all "$WORKER stop" ;;
    *) "$command" ;;
  esac
}

main "$@"
