"""The import graph: who may import whom, what stays light, and that no import does work."""

import ast
import functools
import importlib.util
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
# launch -> tasks -> the method -> convert -> its parts -> core: an arrow points to what may be
# imported. `convert` knows the networks of `student` and `reranker`; these know nothing of it.
FIGURES = {"statistics", "measures", "hits", "ranking", "scorecard"}
SCORES = FIGURES | {"scorecard_table", "report", "report_data", "comparison"}
ENDPOINT = {"endpoint", "completions", "asking", "batch_api"}
THEORY = {"memorisation", "memorisation_page", "memorisation_plot"}
METHOD = {"teacher", "judge", "silver", "beam_grounding", "compose", "answer"}
METHOD |= ENDPOINT | SCORES | THEORY
PARTS = {"retrieval", "student", "reranker"}
LEAVES = {
  "questions",
  "prompts",
  "answer_parser",
  "exemplars",
}  # all but core know these
T5X = {"kard_jax.core.t5x_loop", "kard_jax.core.t5x_model"}
LEVELS = {
  **dict.fromkeys(["core"], 0),
  **dict.fromkeys(LEAVES, 1),
  **dict.fromkeys(PARTS, 2),
  **dict.fromkeys(["convert"], 3),
  **dict.fromkeys(METHOD, 4),
  **dict.fromkeys(["tasks"], 5),
  **dict.fromkeys(["launch"], 6),
}
LIGHT = [
  "kard_jax.questions",
  "kard_jax.exemplars",
  "kard_jax.prompts",
  "kard_jax.answer_parser",
  "kard_jax.teacher",
  "kard_jax.judge",
  "kard_jax.asking",
  "kard_jax.batch_api",
  "kard_jax.compose",
  "kard_jax.ranking",
  "kard_jax.scorecard",
  "kard_jax.scorecard_table",
  "kard_jax.comparison",
  "kard_jax.memorisation_page",
  "kard_jax.retrieval.index",
  "kard_jax.retrieval.builder",
  "kard_jax.retrieval.blocks",
  "kard_jax.retrieval.segment",
  "kard_jax.retrieval.postings",
  "kard_jax.retrieval.scoring",
  "kard_jax.retrieval.queries",
  "kard_jax.retrieval.search_cpu",
  "kard_jax.retrieval.passages",
  "kard_jax.retrieval.analyzer",
  "kard_jax.core.files",
  "kard_jax.core.config",
  "kard_jax.core.gin_text",
  "kard_jax.core.provenance",
]


def name_of(path):
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(*folders):
  return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


SHIPPED = {name_of(path): path for path in sources("kard_jax", "tasks", "launch")}


@functools.cache
def imports(path):
  """Every module that a file's import statements name, wherever they stand in it."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found.update(alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
      found.add(node.module)
      found.update(f"{node.module}.{alias.name}" for alias in node.names)
  return found


def importers(package, paths):
  """The modules among `paths` that import a package or something in it."""
  return {
    name_of(path)
    for path in paths
    if any(f"{name}.".startswith(f"{package}.") for name in imports(path))
  }


def part(module):
  """`kard_jax.retrieval.bm25` -> `retrieval`; `tasks.registry` -> `tasks`; others -> None."""
  first, *rest = module.split(".")
  if first == "kard_jax":
    return rest[0] if rest else None
  return first if first in ("tasks", "launch") else None


def test_every_module_has_a_level():
  assert {part(name) for name in SHIPPED} - {None} == set(LEVELS)


@pytest.mark.parametrize("name", SHIPPED)
def test_imports_point_down_the_layers(name):
  mine = part(name)
  if mine is None:
    assert not imports(SHIPPED[name])  # kard_jax itself
    return
  for other in imports(SHIPPED[name]):
    theirs = part(other)
    if theirs in LEVELS and theirs != mine:
      assert LEVELS[theirs] <= LEVELS[mine], f"{name} imports {other}"
      assert not {mine, theirs} <= PARTS, f"{name} imports {other}"


def test_the_library_imports_neither_tasks_nor_launchers():
  library = sources("kard_jax")
  assert not importers("tasks", library) | importers("launch", library)
  assert not importers("launch", sources("tasks"))


def test_gin_is_for_the_configuration_and_launchers():
  users = importers("gin", SHIPPED.values())
  assert {name for name in users if part(name) != "launch"} == {
    "kard_jax.core.config",
    "kard_jax.core.gin_text",
  }


@pytest.mark.parametrize(
  ("package", "outside_of_tasks"),
  [("seqio", {"launch.train"}), ("tensorflow", set()), ("tensorflow_text", set())],
)
def test_seqio_and_tensorflow_are_for_tasks(package, outside_of_tasks):
  users = importers(package, SHIPPED.values())
  assert any(part(name) == "tasks" for name in users)
  assert {name for name in users if part(name) != "tasks"} == outside_of_tasks


def test_rivals_that_start_a_backend_are_for_tests_and_benchmarks():
  assert not importers("bm25s", SHIPPED.values())
  # Comparing with transformers is what one module is for; it says so where they are not installed.
  users = importers("torch", SHIPPED.values()) | importers("transformers", SHIPPED.values())
  assert users == {"kard_jax.convert.check"}


def test_t5x_is_for_its_own_two_modules():
  """It may be absent: what all others need must not need it."""
  assert importers("t5x", SHIPPED.values()) == T5X
  assert not {n for name in T5X for n in importers(name, SHIPPED.values())} - T5X


def test_nothing_is_pickled():
  for package in ("pickle", "cloudpickle", "joblib", "dill"):
    assert not importers(package, SHIPPED.values())


def in_a_new_process(code):
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
  )
  assert done.returncode == 0, done.stderr
  return done.stdout.split()


def test_data_can_be_prepared_without_jax_or_tensorflow():
  code = f"""
import importlib, sys
for name in {LIGHT}:
  importlib.import_module(name)
  print(*(name + "->" + heavy for heavy in ("jax", "tensorflow") if heavy in sys.modules))
"""
  assert in_a_new_process(code) == []


def test_no_import_queries_a_device():
  here = sorted(SHIPPED if importlib.util.find_spec("t5x") else SHIPPED.keys() - T5X)
  code = f"""
import importlib
from jax._src import xla_bridge
for name in {here}:
  importlib.import_module(name)
  if xla_bridge._backends:
    print(name)
    break
else:
  import jax
  jax.devices()
  print(len(xla_bridge._backends) > 0)
"""
  assert in_a_new_process(code) == ["True"]  # the check itself sees a query
