#!/usr/bin/env bash
# Our launchers on the GPUs of a SLURM cluster; run it from the checkout on a login node.
#
# launch/pods/slurm.sh COMMAND [FLAGS] [-- LAUNCHER ARGUMENT...]
#
#   install  .venv in the checkout, which the nodes must see too
#   run      submits slurm.sbatch
#   logs     what the job prints, until this is stopped
#   status   where it is in the queue
#   stop     SIGTERM: it saves and leaves, and is not queued again
#
# Flags, or variables of the same names, such as KARD_PARTITION:
#   --nodes=N            1 unless given
#   --gpus_per_node=N    8 unless given
#   --time=HH:MM:SS      04:00:00 unless given; a job that is not done then saves and is queued again
#   --partition=NAME --account=NAME --qos=NAME --constraint=TEXT    as your cluster needs them
#   --name=NAME          of the job; kard unless given
#   --job=ID             for logs, status, stop
#   --dry_run            prints the commands that would be run
#
# Example:
#   launch/pods/slurm.sh run --nodes=2 --partition=gpu \
#     -- launch/train.py --gin_file=gin_configs/recipes/quickstart/6_student_kard.gin
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/command_line.sh"

nodes=1
gpus_per_node=8
time=04:00:00
partition="${KARD_PARTITION:-}"
account="${KARD_ACCOUNT:-}"
qos="${KARD_QOS:-}"
constraint="${KARD_CONSTRAINT:-}"
name="${KARD_NAME:-kard}"
job="${KARD_JOB_ID:-}"

run() {
  local options=("--job-name=$name" "--nodes=$nodes" "--gpus-per-node=$gpus_per_node" "--time=$time")
  [ -z "$partition" ] || options+=("--partition=$partition")
  [ -z "$account" ] || options+=("--account=$account")
  [ -z "$qos" ] || options+=("--qos=$qos")
  [ -z "$constraint" ] || options+=("--constraint=$constraint")
  cd "$ROOT" # where the nodes look for it
  perform sbatch "${options[@]}" launch/pods/slurm.sbatch "${launcher[@]}"
}

main() {
  local command="${1:-}"
  case "$command" in
    --help | "") explain "${BASH_SOURCE[0]}"; return ;;
    install | run | logs | status | stop) shift ;;
    *) fail "$command: not a command; --help lists them" ;;
  esac
  read_flags "nodes gpus_per_node time partition account qos constraint name job dry_run!" "$@"
  [[ "$nodes" =~ ^[1-9][0-9]*$ ]] || fail "--nodes=$nodes: a number is needed"
  [[ "$gpus_per_node" =~ ^[1-9][0-9]*$ ]] || fail "--gpus_per_node=$gpus_per_node: a number is needed"
  if [ "$command" = run ]; then
    need_launcher
  elif [ ${#launcher[@]} -gt 0 ]; then
    fail "$command runs no launcher; leave out what stands behind --"
  fi
  case "$command" in
    install) perform "$ROOT/launch/pods/worker.sh" install gpu ;;
    run)
      need_program sbatch
      run
      ;;
    *)
      [[ "$job" =~ ^[0-9]+$ ]] || fail "--job is needed: the number that sbatch gave"
      need_program squeue
      case "$command" in
        logs) perform tail --lines=+1 --follow "$ROOT/kard-$job.log" ;;
        status) perform squeue "--jobs=$job" ;;
        stop)
          perform scontrol update "JobId=$job" Requeue=0
          perform scancel --signal=TERM "$job"
          ;;
      esac
      ;;
  esac
}

main "$@"
