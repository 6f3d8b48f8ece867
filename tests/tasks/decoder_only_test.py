"""Rows of decoder-only students: SeqIO's but for the first place, and what answering feeds."""

import base64
import gzip
import json
import pathlib

import numpy as np
import pytest
import seqio

from kard_jax.core.files import InputError
from kard_jax.student.gpt import GPT
from kard_jax.student.t5 import T5
from tasks import decoder_only, features, vocabularies
from tasks.batches import Batches

_GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "tokenizers.json.gz"
_LENGTHS = {"inputs": 130, "targets": 60}


@pytest.fixture(params=["opt", "qwen2", "llama2", "sentencepiece"])
def dataset(request, tmp_path, tiny_files, register):
  """Vocabularies with BOS and padding, padding alone, BOS alone, and T5's."""
  found = register(tiny_files)
  if request.param != "sentencepiece":
    kinds = json.loads(gzip.decompress(_GOLDEN.read_bytes()))["kinds"]
    for name, data in kinds[request.param]["files"].items():
      (tmp_path / name).write_bytes(base64.b64decode(data))
    found.use(vocabulary=tmp_path)
  return found


def _of(dataset, kind="kard", **arguments):
  settings = {"lengths": _LENGTHS, "batch_size": 24, "decoder_only": True} | arguments
  return Batches(dataset.task(kind), "train", **settings)


def _example(dataset, tiny_files, kind):
  """Prompt and target of the first example, as text."""
  question = tiny_files.questions["train"][0]
  silver = tiny_files.rows("silver.jsonl")[0]["passages"][:1] if kind == "kard" else []
  known = {passage.id: passage for passage in tiny_files.passages}
  prompt = dataset.prompts.student_input(question, [known[row["id"]] for row in silver])
  return prompt, dataset.prompts.student_target(question, tiny_files.rationales[0]["rationale"])


@pytest.mark.parametrize("kind", ["rd", "kard"])
def test_a_row_is_prompt_separator_target_and_end(kind, dataset, tiny_files):
  (batch,) = _of(dataset, kind, lengths={"inputs": 300, "targets": 200}).epoch()
  vocabulary = dataset.vocabulary
  prompt, target = _example(dataset, tiny_files, kind)
  before = [
    *vocabulary.prefix,
    *vocabulary.encode(prompt),
    *decoder_only.separator_tokens(vocabulary, "\n"),
  ]
  after = [*vocabulary.encode(target), vocabulary.eos_id]
  x, padding = [*before, *after], [vocabulary.pad_id] * (500 - len(before) - len(after))
  assert batch["decoder_input_tokens"][0].tolist() == x[:-1] + padding
  assert batch["decoder_target_tokens"][0].tolist() == x[1:] + padding
  weights = [0] * (len(before) - 1) + [1] * len(after) + [0] * len(padding)
  assert batch["decoder_loss_weights"][0].tolist() == weights
  (text,) = vocabularies.decode(vocabulary, [after])
  assert text.split() == target.split()
  # What answering feeds is the row up to where the target begins, and its last token is fed first.
  fed = decoder_only.prompts(vocabulary, [prompt], 300, dataset.prompts.separator)[0]
  assert fed.tolist() == before + [vocabulary.pad_id] * (300 - len(before))


def test_seqios_prefix_language_model_has_one_place_more(dataset):
  """A 0 in front, which predicts the prompt's first token with weight 0."""
  task = dataset.task("kard")
  separator = decoder_only.separator_tokens(dataset.vocabulary, "\n")
  (batch,) = _of(dataset).epoch()
  with_ends = seqio.get_mixture_or_task(task).get_dataset(
    None, "train", shuffle=False, num_epochs=1
  )

  def reworked(example):
    import tensorflow as tf

    inputs = tf.concat([example["inputs"][:-1], tf.constant(separator, tf.int32)], 0)
    return {"inputs": inputs, "targets": example["targets"]}

  lengths = _LENGTHS
  converter = seqio.PrefixLMFeatureConverter(pack=False)
  expected = list(converter(with_ends.map(reworked), lengths).as_numpy_iterator())
  assert _of(dataset).trimmed == 0
  pad = dataset.vocabulary.pad_id
  for row, example in enumerate(expected):
    used = int((example["decoder_target_tokens"] > 0).sum()) - 1
    for name in ("decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights"):
      theirs, mine = example[name][1:], batch[name][row]
      np.testing.assert_array_equal(mine[:used], theirs[:used], err_msg=name)
      assert (mine[used:] == (0 if "weights" in name else pad)).all()


def test_a_long_prompt_loses_its_end_before_the_separator(dataset, tiny_files, caplog):
  lengths = {"inputs": 20, "targets": 60}
  found = _of(dataset, lengths=lengths)
  (batch,) = found.epoch()
  assert found.trimmed_features == {"inputs": 24, "targets": 0}
  assert "24 inputs longer than 20 tokens are cut" in caplog.text
  prompt, target = _example(dataset, tiny_files, "kard")
  vocabulary = dataset.vocabulary
  separator = decoder_only.separator_tokens(vocabulary, "\n")
  assert separator == (vocabulary.encode("\n") or [vocabulary.eos_id])
  before = [*vocabulary.prefix, *vocabulary.encode(prompt)][: 20 - len(separator)] + separator
  fed = decoder_only.prompts(vocabulary, [prompt], 20, "\n")[0]
  assert fed.tolist() == before
  assert batch["decoder_input_tokens"][0][:20].tolist() == before
  after = [*vocabulary.encode(target), vocabulary.eos_id]
  assert batch["decoder_target_tokens"][0][19 : 19 + len(after)].tolist() == after
  cut = _of(dataset, lengths={"inputs": 130, "targets": 5})
  assert cut.trimmed_features["targets"] == 24
  with pytest.raises(InputError, match="INPUT_LENGTH = 1: the separator alone"):
    _of(dataset, lengths={"inputs": 1, "targets": 5})(0)


def test_packed_rows_hold_the_same_texts(dataset):
  found, alone = _of(dataset, pack=True, batch_size=50, shuffle=False), _of(dataset)
  (batch,), (single,) = found.epoch(), alone.epoch()
  seen = 0
  for row in range(found.rows):
    members = found._packed.members[row]
    for place, member in enumerate(members):
      here = batch["decoder_segment_ids"][row] == place + 1
      size = int(here.sum())
      for name in single:
        np.testing.assert_array_equal(batch[name][row][here], single[name][member][:size])
      assert batch["decoder_positions"][row][here].tolist() == list(range(size))
      seen += 1
  assert seen == 24
  assert not batch["decoder_loss_weights"][batch["decoder_segment_ids"] == 0].any()


def test_the_network_tells_which_rows_it_reads():
  assert not features.is_decoder_only(T5())
  gpt = pytest.importorskip("kard_jax.student.gpt")
  assert features.is_decoder_only(gpt.GPT())


@pytest.mark.parametrize("decodes", [False, True])
def test_the_size_of_a_prompt_is_what_reading_it_whole_takes(decodes, dataset, tiny_files):
  network = GPT() if decodes else T5()
  texts = [dataset.prompts.student_input(q) for q in tiny_files.questions["train"]]
  rows = decoder_only.read(dataset, network, texts, 400)
  pad = network.pad_id if decodes else dataset.vocabulary.pad_id
  sizes = decoder_only.sizes(dataset, network, texts)
  assert len(set(sizes)) > 1
  for row, size in zip(rows, sizes, strict=True):
    assert (row[size:] == pad).all()
    assert size == 400 - (row[::-1] != pad).argmax()
