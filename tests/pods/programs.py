"""Stand-ins for gcloud, kubectl, sbatch and the like, which write down how they were called."""

import dataclasses
import os
import pathlib
import subprocess

from kard_jax.core import gin_text

PODS = gin_text.ROOT / "launch" / "pods"
NAMES = ("gcloud", "kubectl", "docker", "xpk", "sbatch", "srun", "squeue", "scancel", "scontrol")

# A call is words that end with NUL, and RS; then a script of the test's answers.
FAKE = """#!/usr/bin/env bash
{ printf '%s\\0' "${0##*/}" "$@"; printf '\\036'; } >>"$CALLS"
if [ -f "$ANSWERS/${0##*/}" ]; then . "$ANSWERS/${0##*/}"; fi
"""


@dataclasses.dataclass
class Programs:
  """A PATH with stand-ins."""

  folder: pathlib.Path

  def __post_init__(self):
    for name in ("bin", "answers", "home"):
      (self.folder / name).mkdir()
    for name in NAMES:
      self.install(name, FAKE)

  def install(self, name, text):
    path = self.folder / "bin" / name
    path.write_text(text)
    path.chmod(0o755)

  def answers(self, name, script):
    """What a program does after it has written down the call; bash, with the call's words as $@."""
    (self.folder / "answers" / name).write_text(script)

  @property
  def environment(self):
    kept = {key: value for key, value in os.environ.items() if not _ours(key)}
    return kept | {
      "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
      "HOME": str(self.folder / "home"),
      "CALLS": str(self.folder / "calls"),
      "ANSWERS": str(self.folder / "answers"),
      "STATE": str(self.folder),
      "KARD_POLL": "0",
    }

  def run(self, script, *arguments, cwd=gin_text.ROOT, **environment):
    """Runs a script of launch/pods; gives what `subprocess.run` does."""
    return subprocess.run(
      [str(PODS / script), *arguments],
      env=self.environment | environment,
      cwd=cwd,
      capture_output=True,
      text=True,
      check=False,
      timeout=60,
    )

  @property
  def calls(self):
    """All calls so far, each a list of words."""
    path = self.folder / "calls"
    text = path.read_text() if path.exists() else ""
    return [call.split("\0")[:-1] for call in text.split("\036")[:-1]]


def _ours(key):
  return key.startswith(("KARD_", "CLOUDSDK_", "SLURM_"))


def kubernetes_expands(words):
  """Container arguments as Kubernetes hands them to a process that has no variable set."""
  return [word.replace("$$", "$") for word in words]
