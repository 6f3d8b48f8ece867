"""The images: what they install is what requirements.txt pins, and what they copy is enough."""

import re

import pytest

from kard_jax.core import gin_text
from tests.pods import programs as fakes


def instructions(name):
  """(instruction, its words) of a Dockerfile, continued lines joined."""
  text = re.sub(r"\\\n", " ", (fakes.PODS / name).read_text())
  lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
  return [(line.split()[0], " ".join(line.split()[1:])) for line in lines]


@pytest.mark.parametrize(
  ("name", "extra"), [("Dockerfile.tpu", "tpu"), ("Dockerfile.gpu", "cuda12")]
)
def test_what_an_image_installs(name, extra):
  found = instructions(name)
  assert [word for word, _ in found] == [
    *("FROM", "RUN", "WORKDIR", "COPY", "RUN", "COPY", "ENV", "ENTRYPOINT", "CMD"),
  ]
  assert found[0][1].startswith("python:3.11-")  # as CONTRIBUTING.md and setup have it
  install = found[4][1]
  assert "--requirement requirements.txt" in install
  # JAX's version is read from requirements.txt, so that the two cannot differ.
  pin = re.search(r'"jax\[(\w+)\]==\$\(sed -n \'(.+?)\' requirements.txt\)"', install)
  assert pin[1] == extra
  assert pin[2] == "s/^jax==//p"
  assert found[7][1] == '["python"]'
  assert not any("latest" in words for _, words in found)


def test_requirements_pin_one_jax_and_its_library():
  lines = (gin_text.ROOT / "requirements.txt").read_text().splitlines()
  (jax,) = [line for line in lines if line.startswith("jax==")]
  (jaxlib,) = [line for line in lines if line.startswith("jaxlib==")]
  assert jax.split("==")[1] == jaxlib.split("==")[1]


def test_an_image_has_all_that_runs_and_no_more():
  """.dockerignore lists what is copied: the packages, configurations and launchers."""
  lines = (gin_text.ROOT / ".dockerignore").read_text().split()
  copied = {line[1:] for line in lines if line.startswith("!")}
  assert lines[0] == "*"
  assert all((gin_text.ROOT / name).exists() for name in copied)
  assert {"kard_jax", "tasks", "launch", "gin_configs", "requirements.txt"} <= copied
  assert not copied & {".git", ".venv", "runs", "tests"}
