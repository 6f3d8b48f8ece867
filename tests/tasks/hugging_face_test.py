"""Hugging Face tokenizers: ids and texts are those of transformers, for every kind of folder."""

import base64
import functools
import gzip
import json
import pathlib

import pytest
import seqio
import tensorflow as tf

from kard_jax.core.files import InputError
from tasks import vocabularies
from tasks.batches import Batches
from tasks.vocabularies import Vocabulary

_FILE = pathlib.Path(__file__).parents[1] / "golden" / "tokenizers.json.gz"


@functools.cache
def golden():
  return json.loads(gzip.decompress(_FILE.read_bytes()))


KINDS = [kind for kind in golden()["kinds"] if kind not in ("t5_model",)]


def write(kind, folder):
  folder.mkdir(exist_ok=True)
  for name, data in golden()["kinds"][kind]["files"].items():
    (folder / name).write_bytes(base64.b64decode(data))
  return folder


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_are_the_originals(kind, tmp_path):
  expected = golden()["kinds"][kind]
  vocabulary = Vocabulary(write(kind, tmp_path))
  texts = golden()["texts"]
  assert [vocabulary.encode(text) for text in texts] == expected["bare"]
  assert [vocabulary.whole(text) for text in texts] == expected["whole"]
  decoded = [vocabulary.loaded.decode(ids) for ids in expected["bare"]]
  assert decoded == expected["decoded"]
  assert vocabulary.vocab_size == expected["size"]
  special = expected["special"]
  if special["eos"] is not None or special["sep"] is not None:
    assert vocabulary.eos_id == (special["sep"] if special["eos"] is None else special["eos"])
  else:  # transformers has none: config.json tells
    assert vocabulary.eos_id == 2
  assert vocabulary.pad_id == (-1 if special["pad"] is None else special["pad"])


def test_more_texts_begin_and_end_as_the_original_does(tmp_path):
  vocabulary = Vocabulary(write("bert", tmp_path))
  expected = golden()["kinds"]["bert"]["whole"]
  found = vocabularies.tokens(vocabulary, golden()["texts"])
  assert [found[i].tolist() for i in range(len(found))] == expected  # [CLS] text [SEP]
  bare = vocabularies.tokens(vocabulary, golden()["texts"], end=False)
  assert [bare[i].tolist() for i in range(len(bare))] == [row[:-1] for row in expected]
  rows = vocabularies.encode(vocabulary, golden()["texts"][:3], 9)
  assert rows[0].tolist() == expected[0] + [0] * 7
  assert rows[2].tolist() == [*expected[2][:8], 3]
  opt = Vocabulary(write("opt", tmp_path / "opt"))
  assert (vocabularies.encode(opt, [""], 5) == [[2, 2, 1, 1, 1]]).all()  # its padding is 1


@pytest.mark.parametrize("kind", ["llama3", "bert", "t5"])
def test_tensorflow_gives_the_same(kind, tmp_path):
  vocabulary = Vocabulary(write(kind, tmp_path))
  texts, expected = golden()["texts"], golden()["kinds"][kind]
  assert vocabulary.encode_tf(tf.constant(texts)).to_list() == expected["bare"]
  dataset = tf.data.Dataset.from_tensor_slices(texts).map(vocabulary.encode_tf)
  assert dataset.element_spec.shape.rank == 1
  assert [ids.tolist() for ids in dataset.as_numpy_iterator()] == expected["bare"]
  ids = tf.constant([expected["bare"][1] + [vocabulary.eos_id, 5]])
  assert vocabulary.decode_tf(ids).numpy().tolist() == [expected["decoded"][1].encode()]
  assert vocabularies.decode(vocabulary, ids.numpy()) == [expected["decoded"][1]]


def test_a_seqio_task_reads_with_it(tmp_path):
  vocabulary = Vocabulary(write("qwen2", tmp_path))
  features = {"targets": seqio.Feature(vocabulary)}
  dataset = tf.data.Dataset.from_tensor_slices({"targets": golden()["texts"]})
  for step in (seqio.preprocessors.tokenize, seqio.preprocessors.append_eos):
    dataset = step(dataset, features)
  found = [example["targets"].tolist() for example in dataset.as_numpy_iterator()]
  eos = golden()["kinds"]["qwen2"]["special"]["eos"]
  assert found == [[*row, eos] for row in golden()["kinds"]["qwen2"]["bare"]]


def test_a_t5_folder_is_read_by_its_sentencepiece_model(tmp_path):
  vocabulary = Vocabulary(write("t5_model", tmp_path))
  expected = golden()["kinds"]["t5_model"]
  assert vocabulary.vocab_size == expected["size"]
  assert vocabulary == seqio.SentencePieceVocabulary(str(tmp_path / "spiece.model"), 100)
  for text, ids in zip(golden()["texts"], expected["bare"], strict=True):
    # transformers' class also splits at line ends, and knows the names of special tokens in a text;
    # this model's normaliser leaves line ends alone, T5's own makes them spaces.
    if not set("<\n") & set(text):
      assert vocabulary.encode(text) == ids
  json_alone = Vocabulary(write("t5", tmp_path / "json"))
  assert json_alone.sentinels == vocabulary.sentinels
  assert len(vocabulary.sentinels) == 100
  assert vocabulary.sentinels[0] == vocabulary.vocab_size - 1


def test_what_decides_the_ids_is_in_the_record(tmp_path):
  folder = write("opt", tmp_path / "opt")
  (folder / "model.safetensors").write_bytes(b"weights")
  names = {path.name for path in vocabularies.input_files(folder)}
  assert names == set(golden()["kinds"]["opt"]["files"])
  assert vocabularies.input_files(write("llama3", tmp_path / "a") / "tokenizer.json") == (
    vocabularies.input_files(tmp_path / "a")
  )
  assert Vocabulary(tmp_path / "a" / "tokenizer.json") == Vocabulary(tmp_path / "a")
  assert Vocabulary(tmp_path / "a") != Vocabulary(folder)
  for name in ("t5_model", "llama2_model"):
    assert vocabularies.input_files(write(name, tmp_path / name))[0].suffix == ".model"


def _without(folder, *names):
  for name in names:
    (folder / name).unlink()


def test_folders_that_hold_no_tokenizer_are_refused(tmp_path):
  empty = tmp_path / "empty"
  empty.mkdir()
  with pytest.raises(InputError, match="holds no tokenizer"):
    _ = Vocabulary(empty).vocab_size
  folder = write("opt", tmp_path / "opt")
  (folder / "merges.txt").write_text("#version: 0.2\na b c\n")
  with pytest.raises(InputError, match=r"merges.txt: each line must be two pieces"):
    _ = Vocabulary(folder).vocab_size
  _without(folder, "merges.txt")
  with pytest.raises(InputError, match=r"merges.txt: no such file"):
    _ = Vocabulary(folder).vocab_size
  _without(folder, "tokenizer_config.json", "config.json")
  with pytest.raises(InputError, match="class here is not named"):
    _ = Vocabulary(folder).vocab_size
  folder = write("gpt2", tmp_path / "gpt2")
  text = (folder / "tokenizer.json").read_text()
  (folder / "tokenizer.json").write_text(text[: len(text) // 2])
  with pytest.raises(InputError, match=r"tokenizer.json: not a tokenizer that can be read"):
    _ = Vocabulary(folder).vocab_size
  (folder / "tokenizer.json").write_text(text)
  (folder / "tokenizer_config.json").write_text("[")
  with pytest.raises(InputError, match=r"tokenizer_config.json: not a JSON object"):
    _ = Vocabulary(folder).vocab_size


def test_files_of_two_tokenizers_are_refused(tmp_path):
  folder = write("qwen2", tmp_path)
  config = json.loads((folder / "tokenizer_config.json").read_text())
  config["added_tokens_decoder"]["340"] = {"content": "<|new|>", "special": True}
  (folder / "tokenizer_config.json").write_text(json.dumps(config))
  with pytest.raises(InputError, match=r"new\|>' has the id 333, but the files beside it say 340"):
    _ = Vocabulary(folder).vocab_size
  config["added_tokens_decoder"]["333"] = config["added_tokens_decoder"].pop("340")
  (folder / "tokenizer_config.json").write_text(json.dumps(config))
  vocabulary = Vocabulary(folder)
  assert vocabulary.encode("a<|new|>")[-1] == 333
  assert vocabulary.vocab_size == 334


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
  folder = write("llama3", tmp_path)
  _without(folder, "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
  with pytest.raises(InputError, match="names the token that ends a text"):
    _ = Vocabulary(folder).vocab_size
  (folder / "generation_config.json").write_text('{"eos_token_id": [332, 331]}')
  assert Vocabulary(folder).eos_id == 332
  assert Vocabulary(folder).prefix == (330,)


def test_sentencepiece_models_of_other_kinds_are_refused(tmp_path):
  write("t5_model", tmp_path)
  (tmp_path / "spiece.model").rename(tmp_path / "tokenizer.model")
  with pytest.raises(InputError, match="are read where they are byte pairs"):
    _ = Vocabulary(tmp_path).vocab_size
  (tmp_path / "tokenizer.model").write_bytes(b"junk\xff" * 5)
  with pytest.raises(InputError, match="not a SentencePiece model"):
    _ = Vocabulary(tmp_path).vocab_size


def test_a_dataset_takes_a_folder(tmp_path, tiny_files, register):
  dataset = register(tiny_files)
  dataset.use(vocabulary=write("opt", tmp_path))
  assert dataset.vocabulary.pad_id == 1
  read = [pathlib.Path(name) for name in dataset.task_inputs("rd")]
  assert tmp_path / "merges.txt" in read
  (tokens,) = (
    example["inputs"].tolist()
    for example in seqio.get_mixture_or_task(dataset.task("rd"))
    .get_dataset(None, "train", shuffle=False, num_epochs=1)
    .take(1)
    .as_numpy_iterator()
  )
  text = dataset.prompts.student_input(tiny_files.questions["train"][0])
  assert tokens == [*dataset.vocabulary.whole(text), dataset.vocabulary.eos_id]
  assert tokens[0] == 2  # BOS
  found = Batches(dataset.task("rd"), "train", lengths={"inputs": 9, "targets": 9}, batch_size=4)
  with pytest.raises(InputError, match="pads with id 1"):
    found(0)
