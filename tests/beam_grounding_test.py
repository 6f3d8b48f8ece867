"""Grounding by Beam's workers gives the local run's rows, also when a killed run has begun it."""

import contextlib
from unittest import mock

import pytest

from kard_jax import beam_grounding, silver
from kard_jax.core import files, pipelines, staging
from kard_jax.core.files import InputError
from kard_jax.prompts import Prompts
from kard_jax.questions import Question
from kard_jax.retrieval import index as index_lib
from kard_jax.retrieval import passages as passages_lib
from kard_jax.retrieval.passages import Passages
from tests.beam import TWO_WORKERS, needs_beam
from tests.retrieval import corpus

PROMPTS = Prompts()
SIZES = {"silver": 3, "candidates": 5, "retrieved": 4}


@pytest.fixture
def world(tmp_path, monkeypatch):
  """An index, questions, rationales of which some were not kept, and small files of queries."""
  monkeypatch.setattr(beam_grounding, "A_FILE", 7)
  texts = corpus.zipf_texts(300, 0)
  passages_lib.write(corpus.passages(*texts), tmp_path / "p")
  passages = Passages(tmp_path / "p")
  index = index_lib.build(passages, tmp_path / "i", analyzer=corpus.WHITE)
  questions = [
    Question(f"q/{number}", texts[number], ("ä", "b"), 0) for number in range(0, 200, 10)
  ]
  rationales = [
    {"question_id": q.id, "sample": sample, "rationale": texts[number + sample], "kept": kept}
    for number, q in enumerate(questions)
    for sample, kept in enumerate((True, False, True))
  ]
  return index, passages, questions, rationales


def expected(index, passages, questions, rationales):
  sizes = {"silver": SIZES["silver"], "candidates": SIZES["candidates"]}
  both = list(silver.ground(index, passages, questions, rationales, PROMPTS, **sizes))
  found = silver.retrieve(index, passages, questions, PROMPTS, k=SIZES["retrieved"])
  lines = [[row for row, _ in both], [row for _, row in both], list(found)]
  return ["".join(map(files.to_line, rows)) for rows in lines]


def grounded(world, work, beam):
  index, passages, questions, rationales = world
  with beam_grounding.Grounding(index, passages, work, **SIZES) as grounding:
    kept = silver.queries(questions, rationales, PROMPTS)
    grounding.run(beam, kept, ((q.id, PROMPTS.question_query(q)) for q in questions))
    return ["".join(grounding.lines(kind)) for kind in ("silver", "candidates", "retrieved")]


class Here(pipelines.Beam):
  """Runs the last step in this process, without Beam; notes the pieces and may stop early."""

  pieces: list
  most: int | None

  @contextlib.contextmanager
  def pipeline(self):
    module, root = mock.MagicMock(), mock.MagicMock()
    yield module, root
    [pieces] = module.Create.call_args.args
    work, *more = module.Map.call_args.args
    self.pieces.extend(pieces)
    for piece in reversed(pieces[: self.most]):
      work(piece, *more)
    if self.most is not None:
      raise KeyboardInterrupt


def in_this_process(most=None, storage=None):
  beam = Here("none", (), storage)
  object.__setattr__(beam, "pieces", [])
  object.__setattr__(beam, "most", most)
  return beam


def test_pieces_in_any_order_give_the_rows_in_order(world, tmp_path):
  beam = in_this_process()
  rows = grounded(world, tmp_path / "work", beam)
  assert len(beam.pieces) == 6 + 3
  assert rows == expected(*world)
  assert [len(text.splitlines()) for text in rows] == [40, 40, 20]
  assert not (tmp_path / "work").exists()


def test_through_a_bucket(world, tmp_path, monkeypatch):
  monkeypatch.setattr(staging.tempfile, "tempdir", str(tmp_path))
  bucket = f"file://{tmp_path}/bucket"
  with pytest.raises(KeyboardInterrupt):
    grounded(world, tmp_path / "work", in_this_process(4, bucket))
  assert not [*(tmp_path / "work").glob("*-?????")]
  assert len([*(tmp_path / "bucket").glob("grounding-*/*")]) == 4
  assert grounded(world, tmp_path / "work", in_this_process(None, bucket)) == expected(*world)
  left = sorted(path.name.partition("-")[0] for path in (tmp_path / "bucket").iterdir())
  assert left == ["asked", "bm25", "passages"]


def test_a_killed_run_is_gone_on_with(world, tmp_path):
  with pytest.raises(KeyboardInterrupt):
    grounded(world, tmp_path / "work", in_this_process(most=4))
  beam = in_this_process()
  assert grounded(world, tmp_path / "work", beam) == expected(*world)
  assert len(beam.pieces) == 5


@pytest.mark.parametrize("change", ["rationale", "index"])
def test_what_was_found_for_something_else_is_found_anew(world, tmp_path, change):
  with pytest.raises(KeyboardInterrupt):
    grounded(world, tmp_path / "work", in_this_process(most=4))
  index, passages, questions, rationales = world
  if change == "rationale":
    rationales = [row | {"rationale": "w1 w2"} for row in rationales]
  else:
    index = index_lib.build(passages, tmp_path / "i", analyzer=corpus.WHITE, k1=2.0)
  changed = index, passages, questions, rationales
  beam = in_this_process()
  rows = grounded(changed, tmp_path / "work", beam)
  assert len(beam.pieces) == 9
  assert rows == expected(*changed)


def test_rows_left_elsewhere_are_missed(world, tmp_path):
  class Elsewhere(pipelines.Beam):
    @contextlib.contextmanager
    def pipeline(self):
      yield mock.MagicMock(), mock.MagicMock()

  with pytest.raises(InputError, match="of 9 pieces, workers have left 9 undone; folders have to"):
    grounded(world, tmp_path / "work", Elsewhere("any"))


def test_a_worker_that_sees_something_else_says_so(world, tmp_path):
  index, passages, _, _ = world
  places = (index.directory, str(passages.directory))
  job = beam_grounding.Job(
    *places, "0" * 64, passages.corpus, str(tmp_path), str(tmp_path / "i"), 1, 1, 1
  )
  (tmp_path / "questions-00000.jsonl").write_text('["q", "w1"]\n')
  with pytest.raises(InputError, match="finds another index there"):
    beam_grounding.search(("questions", 0), job)
  with pytest.raises(InputError, match="nowhere: a worker on"):
    beam_grounding.search(("questions", 0), job._replace(work=str(tmp_path / "nowhere")))


@needs_beam
def test_two_workers_find_what_one_process_finds(world, tmp_path):
  beam = pipelines.Beam("DirectRunner", TWO_WORKERS)
  assert grounded(world, tmp_path / "work", beam) == expected(*world)
