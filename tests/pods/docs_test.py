"""docs/pods.md is true: our commands there run those that it says, and the rest is well-formed."""

import re
import shlex

import pytest

from kard_jax.core import gin_text

TEXT = (gin_text.ROOT / "docs" / "pods.md").read_text()
BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)
RUNS = re.compile(r"```sh\n([^`]+)```\n\n(It|The second) runs:\n\n```sh\n([^`]+)```")
SAID = [(match[1], match[2], match[3]) for match in RUNS.finditer(TEXT)]
# What the programs answer: all is well and soon done.
ANSWERS = {
  "gcloud": """case "$*" in
    *describe*) echo ACTIVE ;;
    *"worker.sh status"*) echo "ended 0" ;;
  esac""",
  "kubectl": 'case "$*" in *jsonpath*) echo Completed ;; *apply*) cat >/dev/null ;; esac',
}


def words(block):
  return [shlex.split(line) for line in block.splitlines()]


def exports(text):
  """The variables that a reader has set by the end of a text."""
  return dict(
    word.split("=", 1)
    for block in BLOCK.findall(text)
    for line in words(block)
    if line[0] == "export"
    for word in line[1:]
  )


def run(programs, commands, environment):
  for name, answer in ANSWERS.items():
    programs.answers(name, answer)
  for command in commands:
    if command[0].startswith("launch/pods/"):
      done = programs.run(command[0].removeprefix("launch/pods/"), *command[1:], **environment)
      assert done.returncode == 0, done.stderr


def of_commands(said):
  return " ".join(said[0].strip().splitlines()[-1].split()[:2])


@pytest.mark.parametrize("said", SAID, ids=of_commands)
def test_a_command_runs_what_the_page_says(programs, said):
  block, which, expected = said
  commands = words(block)
  environment = exports(TEXT[: TEXT.index(block) + len(block) + len("```")])
  run(programs, commands[1:] if which == "The second" else commands, environment)
  assert programs.calls == words(expected)


def test_every_script_and_command_of_tpu_sh_is_there():
  shown = {" ".join(line[:2]) for block in BLOCK.findall(TEXT) for line in words(block)}
  tpu = ("create", "wait", "install", "run", "logs", "status", "stop", "delete", "all")
  assert {f"launch/pods/tpu.sh {command}" for command in tpu} <= shown
  gke = ("image", "run", "logs", "status", "wait", "delete", "xpk")
  assert {f"launch/pods/gke.sh {command}" for command in gke} <= shown
  assert len(SAID) == 14


def test_all_in_one_command(programs):
  """The page's command runs to its end, and deletes the slice."""
  (line,) = [line for block in BLOCK.findall(TEXT) for line in words(block) if line[1] == "all"]
  run(programs, [line], exports(TEXT.split("### 3.")[0]))
  verbs = [call[4] for call in programs.calls]
  assert verbs == ["create", "describe", "scp", "ssh", "ssh", "ssh", "describe", "ssh", "delete"]


def test_what_launchers_are_given_exists():
  for name in set(re.findall(r"--gin_file=(\S+)|(launch/\w+\.py)", TEXT)):
    assert (gin_text.ROOT / (name[0] or name[1])).is_file(), name


def test_launchers_have_the_flags_and_macros():
  """The stage's settings resolve as the page gives them."""
  for block in BLOCK.findall(TEXT):
    for line in words(block):
      if "launch/train.py" in line and line[0].startswith("launch/pods/"):
        flags = line[line.index("launch/train.py") + 1 :]
        files = [flag.split("=", 1)[1] for flag in flags if flag.startswith("--gin_file=")]
        overrides = [flag.removeprefix("--gin.") for flag in flags if flag.startswith("--gin.")]
        assert gin_text.workdir(gin_text.resolve(files, overrides)).startswith("/")


def test_costs_follow_from_the_formula():
  for row in re.findall(r"^\| [^|]*(?:base|large|XL|XXL) \|(.+)\|$", TEXT, re.MULTILINE):
    work, openbookqa, medqa, minutes = (float(cell.replace(",", "")) for cell in row.split("|"))
    hours = lambda steps, work=work: steps * work / (197 * 0.4 * 3600)
    assert openbookqa == round(hours(4600), 1)
    assert medqa == round(hours(9500), 1)
    assert minutes == round(hours(4600) / 16 * 60)
