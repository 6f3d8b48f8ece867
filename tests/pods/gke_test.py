"""The JobSet fits Kubernetes' and JobSet's schemas, and says what was asked for."""

import json
import shlex

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.pods import programs as fakes
from tests.pods.tpu_test import HOSTILE

FLAGS = ("--image=us-docker.pkg.dev/mine/kard/kard:1", "--bucket=mine-kard")
ONE_LINE = [word for word in HOSTILE if "\n" not in word and "\t" not in word]
KUBERNETES = "1.33"

# What we rely on of JobSet's v1alpha2; a replicated job's template is Kubernetes' own Job.
TEXT = {"type": "string", "minLength": 1}


def closed(required, **properties):
  return {
    "type": "object",
    "properties": properties,
    "required": required.split(),
    "additionalProperties": False,
  }


JOBSET = closed(
  "apiVersion kind metadata spec",
  apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
  kind={"const": "JobSet"},
  metadata=closed("name", name=TEXT, labels={"type": "object"}, annotations={"type": "object"}),
  spec=closed(
    "replicatedJobs failurePolicy network",
    network=closed("enableDNSHostnames", enableDNSHostnames={"type": "boolean"}),
    failurePolicy=closed(
      "maxRestarts",
      maxRestarts={"type": "integer", "minimum": 0},
      rules={
        "type": "array",
        "items": closed(
          "name action",
          name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
          action={"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
          # Kubernetes' reasons for a failed job
          onJobFailureReasons={
            "type": "array",
            "items": {"enum": ["BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy"]},
          },
        ),
      },
    ),
    replicatedJobs={
      "type": "array",
      "minItems": 1,
      "items": closed(
        "name template",
        name=TEXT,
        replicas={"type": "integer", "minimum": 1},
        template=closed("spec", spec={"type": "object"}),
      ),
    },
  ),
)


def validate(manifest):
  """Raises what the schemas do not allow."""
  jsonschema.validate(manifest, JOBSET)
  for replicated in manifest["spec"]["replicatedJobs"]:
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}}
    kubernetes_validate.validate(
      job | {"spec": replicated["template"]["spec"]}, KUBERNETES, strict=True
    )


def show(programs, *flags, words=("launch/train.py",)):
  done = programs.run("gke.sh", "show", *FLAGS, *flags, "--", *words)
  assert done.returncode == 0, done.stderr
  assert programs.calls == []
  return yaml.safe_load(done.stdout)


def pod_of(manifest):
  return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def test_the_manifest_fits_the_schemas(programs):
  validate(show(programs))
  validate(show(programs, "--spot", "--topology=4x8", "--restarts=0"))


@pytest.mark.parametrize(
  "spoil",
  [
    lambda manifest: manifest["spec"].update(replicas=1),
    lambda manifest: manifest["spec"]["failurePolicy"].update(maxRestarts="20"),
    lambda manifest: manifest["spec"]["failurePolicy"]["rules"][0].update(action="Fail"),
    lambda manifest: pod_of(manifest).update(nodeSelectors={}),
    lambda manifest: pod_of(manifest)["containers"][0].update(args="launch/train.py"),
    lambda manifest: pod_of(manifest)["containers"][0]["ports"][0].update(containerPort="8471"),
  ],
)
def test_the_schemas_see_what_is_wrong(programs, spoil):
  manifest = show(programs)
  spoil(manifest)
  with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
    validate(manifest)


@pytest.mark.parametrize(
  ("flags", "hosts", "chips"),
  [
    ((), 4, 4),
    (("--topology=2x2x4", "--accelerator=tpu-v5p-slice"), 4, 4),
    (("--topology=16x16",), 64, 4),
    (("--topology=2x4", "--chips_per_host=8"), 1, 8),
  ],
)
def test_a_pod_for_each_host_of_the_slice(programs, flags, hosts, chips):
  manifest = show(programs, *flags)
  job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
  assert job["parallelism"] == job["completions"] == hosts
  container = pod_of(manifest)["containers"][0]
  assert container["resources"]["limits"] == {"google.com/tpu": chips}


def test_words_arrive_as_they_were_given(programs):
  """Through YAML, and through Kubernetes' own expansion of $(NAME)."""
  for words in (ONE_LINE, ["launch/run.py", "${NAME} ${IMAGE} & \\1", "$$(X)"]):
    container = pod_of(show(programs, words=words))["containers"][0]
    assert fakes.kubernetes_expands(container["args"]) == words


def test_bad_input_is_not_tried_again(programs):
  """Status 2 fails the job by its policy, and the set by the job's reason."""
  manifest = show(programs)
  job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
  rule = job["podFailurePolicy"]["rules"][0]
  assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [2])
  assert rule["onExitCodes"]["containerName"] == pod_of(manifest)["containers"][0]["name"]
  assert manifest["spec"]["failurePolicy"]["rules"][0] == {
    "name": "badInput",
    "action": "FailJobSet",
    "onJobFailureReasons": ["PodFailurePolicy"],
  }
  assert job["backoffLimit"] == 0  # anything else restarts the set, all hosts at once


def test_the_cluster_gets_what_show_shows(programs):
  programs.answers("kubectl", 'cat >"$STATE/given"')
  shown = programs.run("gke.sh", "show", *FLAGS, "--", *ONE_LINE).stdout
  done = programs.run("gke.sh", "run", *FLAGS, "--namespace=team", "--", *ONE_LINE)
  assert done.returncode == 0
  assert (programs.folder / "given").read_text() == shown
  assert programs.calls == [["kubectl", "apply", "--namespace=team", "--filename=-"]]
  dry = programs.run("gke.sh", "run", *FLAGS, "--namespace=team", "--dry_run", "--", *ONE_LINE)
  assert dry.stdout == "kubectl apply --namespace=team --filename=-\n" + shown
  assert len(programs.calls) == 1


def test_wait_ends_with_the_set(programs):
  programs.answers("kubectl", 'sed -n 1p "$STATE/states"; sed -i 1d "$STATE/states"')
  (programs.folder / "states").write_text("\n\nCompleted\n")
  assert programs.run("gke.sh", "wait").returncode == 0
  assert len(programs.calls) == 3
  (programs.folder / "states").write_text("\nFailed\n")
  done = programs.run("gke.sh", "wait")
  assert (done.returncode, done.stderr) == (1, "kard failed; see its logs\n")


def test_xpk_runs_the_same_words(programs):
  place = ("--cluster=c", "--project=p", "--zone=z", "--spot")
  done = programs.run("gke.sh", "xpk", FLAGS[0], *place, "--", *HOSTILE)
  assert done.returncode == 0, done.stderr
  (call,) = programs.calls
  assert call[:3] == ["xpk", "workload", "create"]
  assert "--tpu-type=v5litepod-16" in call
  command = next(word for word in call if word.startswith("--command="))
  assert shlex.split(command.removeprefix("--command=")) == ["python", *HOSTILE]


def test_json_is_json(programs):
  """The strings that bash writes are those that json.dumps would."""
  text = programs.run("gke.sh", "show", *FLAGS, "--", "launch/train.py", 'a"b\\c').stdout
  (line,) = [line for line in text.splitlines() if line.strip().startswith("args: ")]
  assert line.split("args: ")[1] == json.dumps(["launch/train.py", 'a"b\\c'])
