"""SeqIO's cache: batches are the same with it, and one of other examples is refused."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import seqio
import tensorflow as tf

from kard_jax.core.files import InputError
from tasks import cached, registry
from tasks.batches import Batches
from tests.beam import ROOT, needs_beam
from tests.tasks import tiny

LENGTHS = {"inputs": 30, "targets": 9}
LISTS = {"query": 9, "passages": 7}
KINDS = ["ft", "kaft", "rd", "kard", "rerank", "dapt", "dapt_lm"]


@pytest.fixture(autouse=True)
def _no_caches_are_left():
  yield
  seqio.set_global_cache_dirs([])


def write_cache(folder, task, split="train"):
  """What `seqio_cache_tasks` writes of a split, in another order than the source's."""
  place = folder / seqio.get_task_dir_from_name(task.name)
  place.mkdir(parents=True, exist_ok=True)
  dataset = task.source.get_dataset(split, shuffle=False)
  examples = list(task.preprocess_precache(dataset, seed=0))
  np.random.default_rng(1).shuffle(examples)
  for shard in range(2):
    path = f"{seqio.get_cached_tfrecord_prefix(str(place), split)}-{shard:05d}-of-00002"
    with tf.io.TFRecordWriter(path) as writer:
      for example in examples[shard::2]:
        writer.write(seqio.dict_to_tfexample(example).SerializeToString())
  described = {
    name: {
      "shape": [None, *spec.shape.as_list()[1:]] if spec.shape.rank else [],
      "dtype": spec.dtype.name,
    }
    for name, spec in dataset_spec(task, dataset).items()
  }
  info = {"num_shards": 2, "features": described, "seqio_version": seqio.__version__}
  (place / f"info.{split}.json").write_text(json.dumps(info))
  (place / f"stats.{split}.json").write_text(json.dumps({"examples": len(examples)}))
  (place / "COMPLETED").write_text("")


def dataset_spec(task, dataset):
  return task.preprocess_precache(dataset, seed=0).element_spec


def batches(dataset, kind, **options):
  lengths = LISTS if kind == "rerank" else LENGTHS
  decodes = kind == "dapt_lm"
  return Batches(
    f"{dataset.name}_{kind}", "train", lengths, 5, decoder_only=decodes, seed=3, **options
  )


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_the_same_with_a_cache(tiny_files, register, tmp_path, kind):
  dataset = register(tiny_files, extra_ids=100)
  task = registry.provider(f"{dataset.name}_{kind}")
  write_cache(tmp_path, task)
  cached.use(tmp_path, [task])
  plain, from_cache = batches(dataset, kind), batches(dataset, kind, cached=True)
  for step in range(4):
    np.testing.assert_equal(from_cache(step), plain(step))
    assert from_cache.names(step) == plain.names(step)
  stored = [str(ids) for ids in cached_ids(task)]
  assert stored != sorted(stored, key=stored_order(task))  # or nothing had to be put in order


def cached_ids(task):
  twin = seqio.Task(task.name, task.source, {}, preprocessors=[seqio.CacheDatasetPlaceholder()])
  dataset = twin.get_dataset(None, "train", use_cached=True, shuffle=False)
  return [example["id"].decode() for example in dataset.as_numpy_iterator()]


def stored_order(task):
  place = {getattr(row, "id", str(row)): n for n, row in enumerate(task.source.records("train"))}
  return place.__getitem__


def test_the_shards_that_workers_take_hold_each_example_once(tiny_files, register):
  source = registry.provider(f"{register(tiny_files).name}_kard").source
  count = len(source.list_shards("train"))
  ids, widths = [], set()
  for number in range(count):
    info = seqio.ShardInfo(number, count)
    for example in source.get_dataset("train", shuffle=False, shard_info=info):
      ids.append(example["id"].numpy())
      widths.add(len(example["options"]))  # padded alike, whatever else is in the shard
  assert sorted(ids) == sorted(row.id.encode() for row in source.records("train"))
  assert 1 < count < len(ids)
  assert len(widths) == 1


def test_a_decoder_only_student_reads_it_too(tiny_files, register, tmp_path):
  dataset = register(tiny_files)
  task = registry.provider(f"{dataset.name}_rd")
  write_cache(tmp_path, task)
  cached.use(tmp_path, [task])
  plain, from_cache = (
    Batches(task.name, "train", LENGTHS, 5, decoder_only=True, pack=True, cached=some)
    for some in (False, True)
  )
  np.testing.assert_equal(from_cache(1), plain(1))


def test_tokens_come_from_the_cache(tiny_files, register, tmp_path, monkeypatch):
  """Not from tokenising again, but for the few that tell the vocabulary."""
  dataset = register(tiny_files)
  task = registry.provider(f"{dataset.name}_kard")
  write_cache(tmp_path, task)
  cached.use(tmp_path, [task])
  monkeypatch.setattr(cached, "_TRIED", 1)
  place = tmp_path / task.name
  for path in place.glob("train.tfrecord-*"):
    records = [tf.train.Example.FromString(raw.numpy()) for raw in tf.data.TFRecordDataset([path])]
    for record in records:
      record.features.feature["targets"].int64_list.value[0] = 77
    with tf.io.TFRecordWriter(str(path)) as writer:
      for record in records:
        writer.write(record.SerializeToString())
  batch = batches(dataset, "kard", cached=True)(0)
  assert (batch["decoder_target_tokens"][:, 0] == 77).all()


@pytest.mark.parametrize("kind", ["kard", "rerank", "dapt"])
def test_a_cache_of_other_examples_is_refused(own_files, register, tmp_path, kind):
  dataset = register(own_files, extra_ids=100)
  task = registry.provider(f"{dataset.name}_{kind}")
  write_cache(tmp_path, task)
  cached.use(tmp_path, [task])
  again = "cache it again with seqio_cache_tasks --overwrite"
  if kind == "kard":
    rows = own_files.rows("rationales.jsonl")
    rows[0]["rationale"] += " Indeed."
    own_files.rewrite("rationales.jsonl", rows)
    changed = "example 0 of split 'train' has changed since"
  elif kind == "rerank":
    rows = own_files.rows("candidates.jsonl")
    rows[1]["passages"][0]["score"] += 1
    own_files.rewrite("candidates.jsonl", rows)
    changed = "example 1 of split 'train' has changed since"
  else:
    texts = [tiny.Passage(p.id, p.title, p.text + ".") for p in own_files.passages]
    tiny.passages_lib.write(texts, own_files.path / "knowledge" / "passages")
    changed = "example 0 of split 'train' has changed since"
  with pytest.raises(InputError, match=f"{changed}.*{again}"):
    batches(dataset, kind, cached=True)(0)


@pytest.mark.parametrize("kind", ["rd", "rerank", "dapt_lm"])
def test_a_cache_of_another_vocabulary_is_refused(own_files, register, tmp_path, kind):
  dataset = register(own_files, extra_ids=100)
  task = registry.provider(f"{dataset.name}_{kind}")
  write_cache(tmp_path, task)
  cached.use(tmp_path, [task])
  tiny.vocabularies.train_sentencepiece(
    ["metal place tin iron gold lead mines ABCD abcdefghijklmnopqrstuvwxyz0123456789.?/:()"],
    own_files.path / "vocabulary/sentencepiece.model",
    80,
  )
  dataset.locate(own_files.path)
  with pytest.raises(InputError, match="or the vocabulary has; cache it again"):
    batches(dataset, kind, cached=True)(0)


def test_a_cache_of_fewer_examples_is_refused(own_files, register, tmp_path):
  dataset = register(own_files)
  task = registry.provider(f"{dataset.name}_rd")
  write_cache(tmp_path, task)
  cached.use(tmp_path, [task])
  rows = own_files.rows("rationales.jsonl")
  rows[1]["kept"] = True
  own_files.rewrite("rationales.jsonl", rows)
  with pytest.raises(
    InputError, match="24 examples in split 'train', of which 24 are among the 25"
  ):
    batches(dataset, "rd", cached=True)(0)


def test_a_task_that_is_not_there_is_named_with_its_command(tiny_files, register, tmp_path):
  task = registry.provider(f"{register(tiny_files).name}_rd")
  with pytest.raises(
    InputError, match=f"no cache of {task.name} there.*seqio_cache_tasks --tasks="
  ):
    cached.use(tmp_path, [task])


MODULE = """
from tasks import registry
registry.register("stored", questions="no", passages="no.jsonl", extra_ids=100, workdir={path!r})
"""


@pytest.mark.slow
@needs_beam
def test_seqios_own_program_caches_tasks_and_use_cached_reads_them(tiny_files, register, tmp_path):
  (tmp_path / "my_tasks.py").write_text(MODULE.format(path=str(tiny_files.path)))
  paths = [str(ROOT), str(tmp_path), os.environ.get("PYTHONPATH", "")]
  command = [sys.executable, "-m", "seqio.scripts.cache_tasks_main", "--module_import=my_tasks"]
  command += ["--tasks=stored_(kard|rerank|dapt)", f"--output_cache_dir={tmp_path / 'cache'}"]
  command += ["--min_shards=2", "--pipeline_options=--runner=DirectRunner"]
  command[-1] += ",--direct_num_workers=2,--direct_running_mode=multi_processing"
  environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
  done = subprocess.run(
    command, env=environment, capture_output=True, text=True, timeout=250, check=False
  )
  assert done.returncode == 0, done.stderr[-3000:]
  dataset = register(tiny_files, name="stored", extra_ids=100)
  for kind in ("kard", "rerank", "dapt"):
    task = registry.provider(f"stored_{kind}")
    cached.use(tmp_path / "cache", [task])
    np.testing.assert_equal(batches(dataset, kind, cached=True)(1), batches(dataset, kind)(1))
    if kind == "dapt":
      continue  # SeqIO's pieces go over passages, which a cache has in another order
    lengths = LENGTHS if kind == "kard" else LISTS | {"scores": 30}
    plain, stored = (
      {
        example["id"]: example
        for example in task.get_dataset(
          lengths, "train", use_cached=some, shuffle=False
        ).as_numpy_iterator()
      }
      for some in (False, True)
    )
    assert len(plain) == 24
    assert list(plain) != list(stored)
    assert plain.keys() == stored.keys()
    for id, example in plain.items():
      for name, value in example.items():
        if name not in ("passages", "scores", "from_rationale"):
          np.testing.assert_array_equal(stored[id][name], value)
      if kind == "rerank":  # a list is drawn, in an order of its own
        assert sorted(stored[id]["scores"]) == sorted(example["scores"])
