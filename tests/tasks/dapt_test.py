"""DAPT: hidden spans and what they hide make the text again; no padding; SeqIO's way."""

import dataclasses
import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import seqio

from kard_jax.core.files import InputError
from tasks import batches, dapt, vocabularies
from tasks.batches import Batches

_LENGTHS = {"inputs": 40, "targets": 14}
_SENTINELS = range(999, 899, -1)


def restored(inputs, targets, sentinels):
  """The text of an input and a target."""
  hidden, mark = {}, None
  for token in targets:
    if token in sentinels:
      mark = token
      hidden[mark] = []
    else:
      hidden[mark].append(token)
  text = []
  for token in inputs:
    text += hidden.pop(token) if token in sentinels else [token]
  assert not hidden
  return text


@hypothesis.given(st.integers(2, 400), st.integers(0, 2**32))
def test_input_and_target_make_the_text_again(length, seed):
  tokens = np.arange(1, length + 1, dtype=np.int32)
  inputs, targets = dapt.corrupt(tokens, _SENTINELS, np.random.default_rng(seed))
  assert restored(inputs.tolist(), targets.tolist(), _SENTINELS) == tokens.tolist()
  hidden, spans = dapt.counts(length)
  assert len(inputs) == length - hidden + spans
  assert len(targets) == hidden + spans
  marks = [token for token in inputs if token in _SENTINELS]
  assert marks == list(_SENTINELS[:spans])
  assert marks == [token for token in targets if token in _SENTINELS]
  assert inputs[0] == 1  # the text begins with a span that stays
  assert not any(a in marks and b in marks for a, b in itertools.pairwise(inputs))


def test_fifteen_in_a_hundred_are_hidden_in_spans_of_three():
  assert dapt.counts(100) == (15, 5)
  assert dapt.counts(568) == (85, 28)
  # T5's own rows: 568 tokens become 512 of input and 114 of target.
  assert dapt.chunk_length({"inputs": 512, "targets": 114}, for_decoder=False) == 568
  assert dapt.chunk_length({"inputs": 512, "targets": 114}, for_decoder=True) == 626
  with pytest.raises(InputError, match="too short"):
    dapt.chunk_length({"inputs": 2, "targets": 2}, for_decoder=False)


def test_every_token_is_hidden_about_as_often():
  tokens, hidden = np.arange(200), np.zeros(200)
  rng = np.random.default_rng(0)
  for _ in range(2000):
    _, targets = dapt.corrupt(tokens, _SENTINELS, rng)
    hidden[targets[targets < 200]] += 1 / 2000
  assert hidden[0] == 0  # always kept, and the last is always hidden
  np.testing.assert_allclose(hidden[-1], 1)
  np.testing.assert_allclose(hidden.mean(), 0.15)
  np.testing.assert_allclose(hidden[20:-20], 0.15, atol=0.045)


def test_a_vocabulary_without_sentinels_is_refused(tiny_files, register):
  found = Batches(register(tiny_files).task("dapt"), "train", lengths=_LENGTHS, batch_size=2)
  with pytest.raises(InputError, match=r"needs 2 sentinels, and the vocabulary has 0; .*100"):
    found(0)


@pytest.fixture
def dataset(tiny_files, register):
  return register(tiny_files, extra_ids=100)


def _text(dataset, tiny_files, end):
  texts = [dataset.prompts.passage_text(passage) for passage in tiny_files.passages]
  return vocabularies.tokens(dataset.vocabulary, texts, end=end).values.tolist()


def test_an_epoch_is_the_knowledge_base_without_padding(dataset, tiny_files):
  found = Batches(dataset.task("dapt"), "train", lengths=_LENGTHS, batch_size=3, seed=1)
  shown = list(found.epoch())
  sentinels, eos = dataset.vocabulary.sentinels, dataset.vocabulary.eos_id
  text = []
  for batch in shown:
    for inputs, targets in zip(
      batch["encoder_input_tokens"].tolist(), batch["decoder_target_tokens"].tolist(), strict=True
    ):
      if not any(inputs):
        continue
      ends = inputs.index(eos), targets.index(eos)
      text += restored(inputs[: ends[0]], targets[: ends[1]], sentinels)
  assert text == _text(dataset, tiny_files, end=False)
  whole = [row for batch in shown for row in batch["encoder_input_tokens"]][: found.examples - 1]
  assert all((row > 0).all() for row in whole)
  np.testing.assert_equal(list(found.epoch()), shown)  # an evaluation is the same each time
  assert found.trimmed == 0
  shapes = {name: (array.shape, array.dtype) for name, array in found(0).items()}
  assert shapes == {name: (shape.shape, shape.dtype) for name, shape in found.shapes.items()}
  assert batches.has_examples(dataset.task("dapt"), "train")


def test_spans_are_drawn_anew_in_each_epoch_and_by_step_alone(dataset):
  found = Batches(dataset.task("dapt"), "train", lengths=_LENGTHS, batch_size=2, seed=1)
  first = [found(step) for step in range(2 * found.examples)]
  again = dataclasses.replace(found)
  for step in (7, 3, 0):
    np.testing.assert_equal(again(step), first[step])
    share = found(step, slice(1, 2))
    np.testing.assert_equal(share, {name: array[1:] for name, array in first[step].items()})
  rows = {}
  for step, batch in enumerate(first):
    for name, row in zip(found.names(step), batch["encoder_input_tokens"], strict=True):
      rows.setdefault(name, set()).add(tuple(row))
  assert len(rows) == found.examples
  assert np.mean([len(some) > 2 for some in rows.values()]) > 0.8
  other = dataclasses.replace(found, seed=2)
  assert (other(0)["encoder_input_tokens"] != first[0]["encoder_input_tokens"]).any()


def test_a_decoder_predicts_every_next_token(dataset, tiny_files):
  assert dataset.task("dapt", decoder_only=True) == dataset.task("dapt_lm")
  found = Batches(
    dataset.task("dapt_lm"), "train", lengths=_LENGTHS, batch_size=4, decoder_only=True
  )
  batch = {name: np.concatenate([b[name] for b in found.epoch()]) for name in found(0)}
  text, place = _text(dataset, tiny_files, end=True), 0
  for row in range(found.examples):
    size = int(batch["decoder_loss_weights"][row].sum())
    assert size == 53 or row == found.examples - 1
    assert batch["decoder_input_tokens"][row][:size].tolist() == text[place : place + size]
    assert batch["decoder_target_tokens"][row][:size].tolist() == text[place + 1 : place + size + 1]
    place += size + 1
  assert place >= len(text) - 1
  assert found.trimmed == 0
  assert text.count(dataset.vocabulary.eos_id) == len(tiny_files.passages)


def test_seqio_gives_the_same_pieces(dataset):
  lm = seqio.get_mixture_or_task(dataset.task("dapt_lm")).get_dataset(
    {"targets": 53 + 1}, "train", shuffle=False, num_epochs=1
  )
  pieces = dapt._chunks(
    seqio.get_mixture_or_task(dataset.task("dapt_lm")), "train", _LENGTHS, for_decoder=True
  )
  found = [example["targets"].tolist() for example in lm.as_numpy_iterator()]
  assert found == [pieces[n].tolist() for n in range(len(pieces))]
  task = seqio.get_mixture_or_task(dataset.task("dapt"))
  pieces = dapt._chunks(task, "train", _LENGTHS, for_decoder=False)
  eos, sentinels = dataset.vocabulary.eos_id, dataset.vocabulary.sentinels
  seen = []
  for seed in (1, 2):
    examples = task.get_dataset(_LENGTHS, "train", shuffle=False, num_epochs=1, seed=seed)
    for n, example in enumerate(examples.as_numpy_iterator()):
      inputs, targets = example["inputs"].tolist(), example["targets"].tolist()
      assert inputs.pop() == targets.pop() == eos
      assert restored(inputs, targets, sentinels) == pieces[n].tolist()
      seen.append(tuple(inputs))
    assert n == len(pieces) - 1
  assert len(set(seen)) > 1.5 * len(pieces)


def test_full_rows_are_not_packed(dataset):
  found = Batches(dataset.task("dapt"), "train", lengths=_LENGTHS, batch_size=4, pack=True)
  with pytest.raises(InputError, match=r"PACK = True: rows of .* are full"):
    found(0)
  assert dataset.task_inputs("dapt")[0] == "knowledge/passages"
