"""Vocabularies: what is trained, what is loaded, and the one way from text to tokens and back."""

import copy

import numpy as np
import pytest
import sentencepiece
import seqio
import tensorflow as tf

from kard_jax.core.files import InputError
from tasks import tensorflow_setup, vocabularies
from tasks.vocabularies import Vocabulary

_TEXTS = [
  f"The place {name} mines rich seams of tin.\nAnswer: B" for name in ("Bakori", "Tumensol")
]


def _train(path, **settings):
  return vocabularies.train_sentencepiece(_TEXTS * 20, path, 90, **settings)


def test_training_is_reproducible_and_has_t5s_ids(tmp_path):
  count = _train(tmp_path / "a.model")
  _train(tmp_path / "deep" / "b.model")
  assert (tmp_path / "a.model").read_bytes() == (tmp_path / "deep" / "b.model").read_bytes()
  vocabulary = Vocabulary(tmp_path / "a.model")
  assert vocabulary.vocab_size == count <= 90
  assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id, vocabulary.bos_id) == (
    0,
    1,
    2,
    -1,
  )
  assert not list(tmp_path.glob(".tmp-*"))


def test_byte_fallback_spells_what_has_no_piece(tmp_path):
  _train(tmp_path / "plain.model")
  vocabularies.train_sentencepiece(_TEXTS, tmp_path / "bytes.model", 330, byte_fallback=True)
  for name, back in (("plain", "\u2047"), ("bytes", "\u6f22")):
    vocabulary = Vocabulary(tmp_path / f"{name}.model")
    (text,) = vocabularies.decode(vocabulary, vocabularies.encode(vocabulary, ["tin \u6f22"], 12))
    assert back in text


@pytest.mark.parametrize(
  ("texts", "message"), [([], "no text"), (["", " \n"], "no text"), (["abcdefgh"], "smaller")]
)
def test_what_cannot_be_trained_is_an_input_error(texts, message, tmp_path):
  with pytest.raises(InputError, match=message):
    vocabularies.train_sentencepiece(texts, tmp_path / "x.model", 5)
  assert not list(tmp_path.iterdir())


def test_encode_cuts_pads_and_ends_in_eos(tmp_path):
  _train(tmp_path / "a.model")
  vocabulary = Vocabulary(tmp_path / "a.model")
  texts = ["tin", _TEXTS[0], ""]
  whole = [[*vocabulary.encode(text), 1] for text in texts]
  assert len(whole[0]) < 8 < len(whole[1])
  rows = vocabularies.encode(vocabulary, texts, 8)
  assert rows.dtype == np.int32
  assert rows[0].tolist() == whole[0] + [0] * (8 - len(whole[0]))
  assert rows[1].tolist() == [*whole[1][:7], 1]
  assert rows[2].tolist() == [1] + [0] * 7
  assert vocabularies.encode(vocabulary, [], 8).shape == (0, 8)


def test_more_texts_than_one_call_takes(tmp_path, monkeypatch):
  _train(tmp_path / "a.model")
  vocabulary = Vocabulary(tmp_path / "a.model")
  texts = [f"place {number}" for number in range(7)]
  once = vocabularies.encode(vocabulary, texts, 12)
  monkeypatch.setattr(vocabularies, "_AT_ONCE", 3)
  np.testing.assert_array_equal(vocabularies.encode(vocabulary, texts, 12), once)


def test_decode_stops_at_eos_and_drops_padding(tmp_path):
  _train(tmp_path / "a.model")
  vocabulary = Vocabulary(tmp_path / "a.model")
  ids = vocabulary.encode("rich seams of tin")
  rows = [[*ids, 1, 5, 6], [*ids, 0, 0], [1], [0, 0], [10**6, 1]]
  assert vocabularies.decode(vocabulary, rows)[:4] == ["rich seams of tin"] * 2 + ["", ""]
  assert vocabularies.decode(vocabulary, np.array(rows[:1])) == ["rich seams of tin"]


def test_the_file_is_found_at_first_use(tmp_path):
  place = {"path": tmp_path / "none.model"}
  vocabulary = Vocabulary(lambda: place["path"])
  with pytest.raises(InputError, match=r"none.model: no such vocabulary"):
    _ = vocabulary.vocab_size
  _train(tmp_path / "a.model")
  place["path"] = tmp_path / "a.model"
  first = vocabulary.vocab_size
  vocabularies.train_sentencepiece([*_TEXTS, "0123456789"], tmp_path / "a.model", 90)
  assert vocabulary.vocab_size == first
  vocabulary.forget()
  assert vocabulary.vocab_size > first
  _train(tmp_path / "b.model")
  place["path"] = tmp_path / "b.model"
  assert vocabulary.vocab_size == first


def test_first_use_inside_a_graph_does_not_tie_it_to_that_graph(tmp_path):
  _train(tmp_path / "a.model")
  vocabulary = Vocabulary(tmp_path / "a.model")
  dataset = tf.data.Dataset.from_tensors("tin").map(vocabulary.encode_tf)
  (ids,) = dataset.as_numpy_iterator()
  assert ids.tolist() == vocabulary.encode("tin")
  assert vocabularies.encode(vocabulary, ["tin"], 9)[0, : len(ids)].tolist() == ids.tolist()


def test_files_that_are_no_vocabulary(tmp_path):
  (tmp_path / "junk.model").write_bytes(b"junk\x00\xff" * 9)
  with pytest.raises(InputError, match="not a SentencePiece model"):
    _ = Vocabulary(tmp_path / "junk.model").vocab_size
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(_TEXTS),
    model_prefix=str(tmp_path / "nopad"),
    vocab_size=60,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  with pytest.raises(InputError, match="padding must be id 0"):
    _ = Vocabulary(tmp_path / "nopad.model").vocab_size


def test_equal_pieces_are_equal_vocabularies(tmp_path):
  for name in ("a", "b"):
    _train(tmp_path / f"{name}.model")
  vocabularies.train_sentencepiece([*_TEXTS, "0123456789"], tmp_path / "c.model", 90)
  a, b, c = (Vocabulary(tmp_path / f"{name}.model") for name in "abc")
  assert a == b
  assert a != c
  assert a != Vocabulary(tmp_path / "a.model", extra_ids=3)
  assert a == seqio.SentencePieceVocabulary(str(tmp_path / "a.model"))
  assert copy.deepcopy(a) == a  # gin copies what it configures


def test_t5s_own_vocabulary(shared_data):
  path = shared_data / "t5" / "sentencepiece.model"
  vocabulary = Vocabulary(path, extra_ids=100)
  assert vocabulary.vocab_size == 32_100
  reference = seqio.SentencePieceVocabulary(str(path), extra_ids=100)
  text = "Which metal is dug up? <extra_id_0>\nOptions: (A) tin"
  assert vocabulary.encode(text) == reference.encode(text)
  assert 32_099 in vocabulary.encode(text)
  assert vocabulary == reference
  ids = vocabularies.encode(vocabulary, [text], 64)
  assert vocabularies.decode(vocabulary, ids)[0].startswith("Which metal is dug up?")


def test_tensorflow_is_kept_off_accelerators(monkeypatch, caplog):
  calls = []
  monkeypatch.setattr(
    tf.config, "set_visible_devices", lambda some, kind: calls.append((some, kind))
  )
  tensorflow_setup.leave_accelerators_alone()
  assert calls == [([], "GPU"), ([], "TPU")]

  def too_late(some, kind):
    raise RuntimeError("initialised")

  monkeypatch.setattr(tf.config, "set_visible_devices", too_late)
  monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [])
  tensorflow_setup.leave_accelerators_alone()
  assert not caplog.records
  monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["GPU:0"])
  tensorflow_setup.leave_accelerators_alone()
  assert "before kard_jax could" in caplog.text
