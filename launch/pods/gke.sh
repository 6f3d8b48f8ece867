#!/usr/bin/env bash
# Our launchers on a TPU slice of a GKE cluster: as a JobSet, or by xpk.
#
# launch/pods/gke.sh COMMAND [FLAGS] [-- LAUNCHER ARGUMENT...]
#
#   image   builds Dockerfile.tpu of this checkout and pushes it
#   run     jobset.yaml, filled in, to the cluster
#   show    jobset.yaml, filled in, to standard output
#   wait    returns when it is done; status 1 when it failed
#   logs    what the first host prints, until it ends; --worker=N for another
#   status  the set and its pods
#   delete  ends it: SIGTERM, so that it saves and leaves
#   xpk     the same job by xpk, on a cluster that xpk made
#
# Flags, or variables of the same names, such as KARD_PROJECT:
#   --image=NAME            where the image is pushed to, with its tag
#   --bucket=NAME           Cloud Storage bucket, mounted as /bucket in every pod
#   --name=NAME             of the set, and of the Kubernetes secret with its environment; kard
#   --topology=4x4          of the slice
#   --accelerator=NAME      tpu-v5-lite-podslice unless given; tpu-v4-podslice, tpu-v5p-slice,
#                           tpu-v6e-slice
#   --chips_per_host=N      4 unless given
#   --service_account=NAME  the Kubernetes one that may use the bucket; kard unless given
#   --namespace=NAME        default unless given
#   --restarts=N            after preemptions; 20 unless given
#   --spot                  on Spot machines
#   --worker=N              whose log
#   --cluster=NAME --project=ID --zone=ZONE --type=v5e-16 --storage=NAME   xpk alone
#   --dry_run               prints the commands that would be run
#
# Example:
#   launch/pods/gke.sh run --image=us-docker.pkg.dev/mine/kard/kard:1 --bucket=mine-kard \
#     -- launch/train.py --gin_file=gin_configs/recipes/quickstart/6_student_kard.gin \
#     --gin.WORKDIR="'/bucket/quickstart'"
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/command_line.sh"

image="${KARD_IMAGE:-}"
bucket="${KARD_BUCKET:-}"
name="${KARD_NAME:-kard}"
topology="${KARD_TOPOLOGY:-4x4}"
accelerator="${KARD_ACCELERATOR:-tpu-v5-lite-podslice}"
chips_per_host=4
service_account="${KARD_SERVICE_ACCOUNT:-kard}"
namespace="${KARD_NAMESPACE:-default}"
restarts=20
spot=no
worker=0
cluster="${KARD_CLUSTER:-}"
project="${KARD_PROJECT:-${CLOUDSDK_CORE_PROJECT:-}}"
zone="${KARD_ZONE:-${CLOUDSDK_COMPUTE_ZONE:-}}"
type="${KARD_TYPE:-v5e-16}"
storage="${KARD_STORAGE:-}"

# hosts: machines of the slice.
hosts() {
  local chips=$((${topology//x/*}))
  [ $((chips % chips_per_host)) = 0 ] ||
    fail "--topology=$topology is $chips chips, which $chips_per_host a host does not divide"
  printf '%s' $((chips / chips_per_host))
}

# manifest: jobset.yaml, filled in; every text as a JSON string, which YAML reads alike.
manifest() {
  local text count arguments selector="" key
  count="$(hosts)"
  # Kubernetes would expand $(NAME) in arguments: a dollar sign is written twice.
  arguments="$(json "${launcher[@]//\$/\$\$}")"
  [ "$spot" = no ] || selector=$'\n                cloud.google.com/gke-spot: "true"'
  # Arguments last, so that nothing in them is taken for a place to fill in.
  local -A values=(
    [NAME]="$(json "$name")"
    [RESTARTS]="$restarts"
    [HOSTS]="$count"
    [SERVICE_ACCOUNT]="$(json "$service_account")"
    [ACCELERATOR]="$(json "$accelerator")"
    [TOPOLOGY]="$(json "$topology")"
    [SPOT]="$selector"
    [IMAGE]="$(json "$image")"
    [CHIPS]="$chips_per_host"
    [BUCKET]="$(json "$bucket")"
    [ARGUMENTS]="[$arguments]"
  )
  text="$(<"$ROOT/launch/pods/jobset.yaml")"
  for key in NAME RESTARTS HOSTS SERVICE_ACCOUNT ACCELERATOR TOPOLOGY SPOT IMAGE CHIPS BUCKET ARGUMENTS; do
    text="${text//"\${$key}"/"${values[$key]}"}"
  done
  printf '%s\n' "$text"
}

build() {
  cd "$ROOT"
  perform docker build --file launch/pods/Dockerfile.tpu --tag "$image" .
  perform docker push "$image"
}

run() {
  local text
  text="$(manifest)"
  if [ "$dry_run" = yes ]; then
    perform kubectl apply "--namespace=$namespace" --filename=-
    printf '%s\n' "$text"
  else
    printf '%s\n' "$text" | kubectl apply "--namespace=$namespace" --filename=-
  fi
}

await() {
  local states
  while true; do
    states="$(perform kubectl get jobset "$name" "--namespace=$namespace" \
      '--output=jsonpath={.status.terminalState}')"
    case "$states" in
      Completed) return ;;
      Failed)
        say "$name failed; see its logs"
        return 1
        ;;
      kubectl*)
        printf '%s\n' "$states"
        return
        ;;
    esac
    sleep "${KARD_POLL:-30}"
  done
}

logs() {
  perform kubectl logs "--namespace=$namespace" --follow --container=kard \
    "--selector=jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=$worker"
}

status() {
  perform kubectl get jobset "$name" "--namespace=$namespace"
  perform kubectl get pods "--namespace=$namespace" \
    "--selector=jobset.sigs.k8s.io/jobset-name=$name" --output=wide
}

delete() { perform kubectl delete jobset "$name" "--namespace=$namespace"; }

by_xpk() {
  local options=("--cluster=$cluster" "--project=$project" "--zone=$zone")
  [ -z "$storage" ] || options+=("--storage=$storage")
  [ "$spot" = no ] || options+=(--spot)
  perform xpk workload create "--workload=$name" "--tpu-type=${type/#v5e-/v5litepod-}" \
    --num-slices=1 "${options[@]}" "--docker-image=$image" "--max-restarts=$restarts" \
    --restart-on-exit-codes=75 --termination-grace-period-seconds=300 "--command=$(quoted python "${launcher[@]}")"
}

main() {
  local command="${1:-}"
  case "$command" in
    --help | "") explain "${BASH_SOURCE[0]}"; return ;;
    image | run | show | wait | logs | status | delete | xpk) shift ;;
    *) fail "$command: not a command; --help lists them" ;;
  esac
  read_flags "image bucket name topology accelerator chips_per_host service_account namespace \
    restarts spot! worker cluster project zone type storage dry_run!" "$@"
  [[ "$name" =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] || fail "--name=$name: lower case, digits and -"
  [[ "$topology" =~ ^[0-9]+(x[0-9]+)+$ ]] || fail "--topology=$topology: such as 4x4, or 2x2x4"
  [[ "$chips_per_host" =~ ^[1-9]$ ]] || fail "--chips_per_host=$chips_per_host: such as 4"
  [[ "$restarts$worker" =~ ^[0-9]+$ ]] || fail "--restarts and --worker are numbers"
  case "$command" in
    run | show | xpk)
      need_launcher
      need image "the image that 'image' pushed"
      ;;
    *) [ ${#launcher[@]} = 0 ] || fail "$command runs no launcher; leave out what stands behind --" ;;
  esac
  case "$command" in
    image)
      need image "where to push it, such as us-docker.pkg.dev/PROJECT/kard/kard:1"
      need_program docker
      build
      ;;
    show)
      need bucket "the Cloud Storage bucket for data and checkpoints"
      manifest
      ;;
    xpk)
      need cluster "the cluster that xpk made"
      need project "the Google Cloud project's id"
      need zone "where the cluster is"
      need_program xpk
      by_xpk
      ;;
    *)
      [ "$command" != run ] || need bucket "the Cloud Storage bucket for data and checkpoints"
      need_program kubectl
      [ "$command" != wait ] || command=await
      "$command"
      ;;
  esac
}

main "$@"
