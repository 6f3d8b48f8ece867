"""An index made by Beam's workers is the local builder's, byte for byte."""

import contextlib
from unittest import mock

import numpy as np
import pytest

from kard_jax.core import pipelines
from kard_jax.core.files import InputError
from kard_jax.retrieval import beam_blocks, blocks, postings, segment
from kard_jax.retrieval import index as index_lib
from kard_jax.retrieval import passages as passages_lib
from kard_jax.retrieval.passages import Passages
from tests.beam import TWO_WORKERS, needs_beam
from tests.retrieval import corpus
from tests.retrieval.corpus import WHITE, bytes_below


@pytest.fixture
def small_blocks(monkeypatch):
  monkeypatch.setattr(postings, "BLOCK", 100)
  monkeypatch.setattr(blocks, "CHARACTERS", 9000)


def stored(path, count=1000):
  """Short and long passages: some blocks end at their number of passages, others at their text."""
  texts = corpus.zipf_texts(count // 2, 0) + corpus.zipf_texts(count // 2, 1, longest=200)
  texts[count // 4] = "long " * 3000  # more than a block
  passages_lib.write(corpus.passages(*texts), path, shard_size=300)
  return Passages(path)


@pytest.fixture
def made(monkeypatch):
  """The names of the blocks that this process stores from here on."""
  names, store = [], segment.store_block

  def spy(block, folder):
    names.append(folder.name)
    store(block, folder)

  monkeypatch.setattr(segment, "store_block", spy)
  return names


def job(passages, work, analyzer=WHITE):
  return beam_blocks.Job(
    str(passages.directory), None, passages.corpus, str(work), analyzer, 100, 9000
  )


def test_blocks_are_cut_where_the_local_builder_cuts(tmp_path, small_blocks):
  passages = stored(tmp_path / "p")
  index = index_lib.build(passages, tmp_path / "i", analyzer=WHITE)
  ends = index.segments[0].block_passages.tolist()
  told = job(passages, tmp_path)
  spans = [(start, min(start + 77, len(passages))) for start in range(0, len(passages), 77)]
  measured = [beam_blocks.measure(span, told)[1] for span in spans]
  found = list(beam_blocks.cut((0, reversed(measured)), told))
  assert [number for number, _, _ in found] == list(range(len(found)))
  assert [0] + [end for _, _, end in found] == ends
  assert [first for _, first, _ in found] == ends[:-1]
  sizes = np.diff(ends)
  assert {1, 100} < set(sizes.tolist())


def test_blocks_made_ahead_are_the_builders(tmp_path, small_blocks, made):
  """Without Beam: what its workers call."""
  passages = stored(tmp_path / "p")
  index_lib.build(passages, tmp_path / "one", analyzer=WHITE)
  count = len(made)

  def ahead(passages, work, analyzer):
    told = job(passages, work, analyzer)
    measured = beam_blocks.measure((0, len(passages)), told)
    for block in reversed(list(beam_blocks.cut((0, [measured[1]]), told))):
      beam_blocks.make(block, told)
      beam_blocks.make(block, told)  # there already

  index_lib.build(passages, tmp_path / "other", analyzer=WHITE, ahead=ahead)
  assert count > 10
  assert len(made) == 2 * count
  assert bytes_below(tmp_path / "one") == bytes_below(tmp_path / "other")


def test_a_worker_that_does_not_see_the_folders_says_so(tmp_path):
  passages = stored(tmp_path / "p", 8)
  gone = job(passages, tmp_path)._replace(passages=str(tmp_path / "elsewhere"))
  with pytest.raises(InputError, match=r"elsewhere: a worker on \S+ does not see it; folders"):
    beam_blocks.measure((0, 8), gone)
  with pytest.raises(InputError, match="finds other passages there"):
    beam_blocks.measure((0, 8), job(passages, tmp_path)._replace(corpus="0" * 64))
  with pytest.raises(InputError, match="nowhere: a worker"):
    beam_blocks.make((0, 0, 8), job(passages, tmp_path / "nowhere"))
  assert not (tmp_path / "nowhere").exists()


class Elsewhere(pipelines.Beam):
  """Stands for workers with disks of their own."""

  @contextlib.contextmanager
  def pipeline(self):
    yield mock.MagicMock(), mock.MagicMock()


def test_blocks_left_elsewhere_are_missed(tmp_path):
  passages = stored(tmp_path / "p", 8)
  with pytest.raises(InputError, match="workers have left 0 passages in blocks"):
    beam_blocks.run(Elsewhere("any"), passages, tmp_path, WHITE)


def test_only_stored_passages(tmp_path):
  with pytest.raises(ValueError, match="only stored passages"):
    index_lib.build(corpus.passages("a"), tmp_path / "i", ahead=lambda *_: None)


@needs_beam
@pytest.mark.parametrize("storage", [False, True], ids=["one file system", "a bucket"])
def test_two_workers_make_the_index_that_one_process_makes(
  tmp_path, small_blocks, made, storage, monkeypatch
):
  monkeypatch.setenv("TMPDIR", str(tmp_path / "machine"))  # of workers
  (tmp_path / "machine").mkdir()
  passages = stored(tmp_path / "p")
  index_lib.build(passages, tmp_path / "one")
  assert len(made) > 10
  made.clear()
  bucket = f"file://{tmp_path}/bucket" if storage else None
  beam = pipelines.Beam("DirectRunner", TWO_WORKERS, bucket)
  index_lib.build(passages, tmp_path / "two", ahead=beam_blocks.make_ahead(beam))
  assert made == []  # the workers have made them all
  assert bytes_below(tmp_path / "one") == bytes_below(tmp_path / "two")
  if storage:
    assert any((tmp_path / "machine").glob("kard_jax-staging/*/header.json"))
    [left] = (tmp_path / "bucket").iterdir()  # for the next stage
    assert left.name.startswith("passages-")
