"""What T5X gets through SeqIO, and that the batches made here hold the same values."""

import itertools

import numpy as np
import pytest
import seqio

from tasks import features
from tasks.batches import Batches


def _through_seqio(task, lengths, converter, split="train", **arguments):
  dataset = seqio.get_mixture_or_task(task).get_dataset(
    lengths, split, **{"shuffle": False, "num_epochs": 1} | arguments
  )
  return list(converter(dataset, lengths).as_numpy_iterator())


def _stacked(examples):
  return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


@pytest.mark.parametrize("lengths", [{"inputs": 96, "targets": 32}, {"inputs": 30, "targets": 9}])
def test_students_batches_are_those_of_seqios_converter(tiny_files, register, lengths):
  task = register(tiny_files).task("kard")
  converter = seqio.EncDecFeatureConverter(pack=False)
  expected = _stacked(_through_seqio(task, lengths, converter))
  batches = Batches(task, "train", lengths=lengths, batch_size=24)
  (batch,) = batches.epoch()
  assert (batches.trimmed > 0) == (lengths["inputs"] == 30)
  assert {name: array.dtype for name, array in batch.items()} == {
    name: array.dtype for name, array in expected.items()
  }
  np.testing.assert_equal(batch, expected)


@pytest.mark.parametrize("lengths", [{"query": 60, "passages": 48}, {"query": 9, "passages": 7}])
def test_rerankers_batches_are_those_of_the_converter(tiny_files, register, lengths):
  task = register(tiny_files).task("rerank")
  lists = tiny_files.rows("candidates.jsonl")
  longest = max(len(row["passages"]) for row in lists)
  shortest = min(len(row["passages"]) for row in lists)
  converter = features.RerankFeatureConverter()
  expected = _stacked(_through_seqio(task, lengths | {"scores": longest}, converter))
  (batch,) = Batches(task, "train", lengths=lengths, batch_size=24, draw=(longest, 0)).epoch()
  np.testing.assert_equal(batch, expected)
  assert expected["passage_mask"].sum(-1).min() == shortest < longest
  assert (expected["passage_tokens"] != 0).any(-1).sum() == expected["passage_mask"].sum()


def test_under_t5x_lists_are_drawn_anew_in_each_epoch(tiny_files, register):
  task = register(tiny_files).task("rerank")
  lengths = {"query": 60, "passages": 48, "scores": 4}
  converter = features.RerankFeatureConverter()

  def scores(seed):
    lists = _through_seqio(task, lengths, converter, seed=seed, num_epochs=2)
    return np.stack([example["passage_scores"] for example in lists])

  first, again, other = scores(1), scores(1), scores(2)
  assert first.shape == (48, 4)
  np.testing.assert_array_equal(first, again)
  assert (first != other).any(-1).mean() > 0.9
  assert (first[:24] != first[24:]).any(-1).mean() > 0.9
  sides = {
    (round(p["score"], 3), p["from"])
    for row in tiny_files.rows("candidates.jsonl")
    for p in row["passages"]
  }
  by_rationale = {score for score, side in sides if side == "rationale"}
  counts = [sum(round(float(score), 3) in by_rationale for score in row) for row in first]
  assert np.median(counts) == 2


def test_a_cut_input_ends_in_eos_and_a_cut_target_does_not(tiny_files, register):
  dataset = register(tiny_files)
  lengths = {"inputs": 20, "targets": 9}
  examples = seqio.get_mixture_or_task(dataset.task("rd")).get_dataset(lengths, shuffle=False)
  for example in itertools.islice(examples.as_numpy_iterator(), 3):
    assert (len(example["inputs"]), len(example["targets"])) == (20, 9)
    assert example["inputs"][-1] == dataset.vocabulary.eos_id
    assert dataset.vocabulary.eos_id not in example["targets"]


def test_lists_cannot_be_packed():
  with pytest.raises(ValueError, match="cannot be packed"):
    features.RerankFeatureConverter(pack=True)
