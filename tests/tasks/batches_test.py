"""Batches: pure in seed and step, whole over an epoch, the same on any number of hosts."""

import dataclasses
import hashlib
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import seqio

from kard_jax.core.files import InputError
from kard_jax.core.train import Batches as Protocol
from tasks import batches as batches_lib
from tasks import registry, vocabularies
from tasks.batches import Batches

_STUDENT = {"inputs": 64, "targets": 32}
_LISTS = {"query": 48, "passages": 24}


def _of(dataset, kind, split="train", **arguments):
  lengths = _LISTS if kind == "rerank" else _STUDENT
  return Batches(
    dataset.task(kind), split, **{"lengths": lengths, "batch_size": 5, "seed": 1} | arguments
  )


def _digest(batch):
  digest = hashlib.sha256()
  for name, array in sorted(batch.items()):
    digest.update(name.encode() + str(array.dtype).encode() + str(array.shape).encode())
    digest.update(np.ascontiguousarray(array).tobytes())
  return digest.hexdigest()


@pytest.mark.parametrize("kind", ["ft", "rerank"])
def test_shapes_are_known_before_there_are_files(kind, tiny_files, register):
  dataset = register()
  shapes = _of(dataset, kind).shapes
  dataset.locate(tiny_files.path)
  batch = _of(dataset, kind)(0)
  assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
    name: (shape.shape, shape.dtype) for name, shape in shapes.items()
  }


@pytest.mark.parametrize("kind", ["rd", "rerank"])
def test_a_batch_depends_on_seed_and_step_alone(kind, tiny_files, register):
  dataset = register(tiny_files)
  first = _of(dataset, kind)
  assert isinstance(first, Protocol)
  steps = [0, 1, 4, 5, 6, 1_000_000]
  expected = {step: _digest(first(step)) for step in steps}
  assert len(set(expected.values())) == len(steps)
  fresh = _of(dataset, kind)
  assert {step: _digest(fresh(step)) for step in reversed(steps)} == expected
  assert _digest(_of(dataset, kind, seed=2)(0)) != expected[0]
  assert fresh.names(5) != fresh.names(0)


@pytest.mark.parametrize("kind", ["rd", "rerank"])
def test_the_shares_of_hosts_make_the_whole(kind, tiny_files, register):
  dataset = register(tiny_files)
  whole = _of(dataset, kind, batch_size=6)
  hosts = [_of(dataset, kind, batch_size=6) if kind == "rerank" else whole for _ in range(3)]
  for step in (0, 3, 4):
    shares = [host(step, slice(2 * place, 2 * place + 2)) for place, host in enumerate(hosts)]
    np.testing.assert_equal(
      {name: np.concatenate([share[name] for share in shares]) for name in shares[0]}, whole(step)
    )
    names = [host.names(step, slice(2 * place, 2 * place + 2)) for place, host in enumerate(hosts)]
    assert [name for some in names for name in some] == whole.names(step)


def test_another_process_makes_the_same_batches_and_imports_do_nothing(tiny_files, register):
  script = """if True:
    import sys
    from tests.tasks import batches_test
    from tasks import batches, openbookqa, registry
    import jax
    from tensorflow.python.eager import context
    assert not jax._src.xla_bridge._backends, "importing started JAX"
    assert not context.context()._initialized, "importing started TensorFlow"
    dataset = registry.register("away", questions="x", passages="y", workdir=sys.argv[1])
    for kind in ("kard", "rerank"):
      print(batches_test._digest(batches_test._of(dataset, kind)(7)))
  """
  root = pathlib.Path(__file__).resolve().parents[2]
  done = subprocess.run(
    [sys.executable, "-c", script, str(tiny_files.path)],
    cwd=root,
    env={**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(root)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  dataset = register(tiny_files)
  expected = [_digest(_of(dataset, kind)(7)) for kind in ("kard", "rerank")]
  assert done.stdout.split() == expected


@pytest.mark.parametrize("shuffle", [True, False])
def test_each_epoch_of_the_stream_has_every_example_once(shuffle, tiny_files, register):
  found = _of(register(tiny_files), "rerank", shuffle=shuffle)
  assert (found.examples, found.steps_per_epoch) == (24, 5)
  stream = [name for step in range(24) for name in found.names(step)]
  in_order = [f"{id}/{sample}" for id, sample in tiny_files.kept("train")]
  epochs = [stream[start : start + 24] for start in range(0, 120, 24)]
  assert all(sorted(epoch) == sorted(in_order) for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) == (5 if shuffle else 1)
  assert (epochs[0] == in_order) == (not shuffle)


def test_orders_of_one_seed_are_not_those_of_the_next(tiny_files, register):
  dataset = register(tiny_files)
  orders = set()
  for seed in range(4):
    found = _of(dataset, "rerank", batch_size=24, seed=seed)
    orders |= {tuple(found.names(epoch)) for epoch in range(4)}
  assert len(orders) == 16


def test_shuffling_is_uniform():
  places = np.zeros((4, 4))
  shuffle = batches_lib.Shuffle(10, 4, seed=3)
  for epoch in range(3000):
    for place in range(4):
      places[place, shuffle(4 * epoch + place, 10 + place) - 10] += 1
  np.testing.assert_allclose(places / 3000, 0.25, atol=0.03)


@pytest.mark.parametrize("kind", ["kard", "rerank"])
def test_an_evaluation_has_every_example_once_and_rows_of_weight_zero(kind, tiny_files, register):
  found = _of(register(tiny_files), kind, batch_size=7)
  weights = "passage_mask" if kind == "rerank" else "decoder_loss_weights"
  epochs = [list(found.epoch()) for _ in range(2)]
  np.testing.assert_equal(epochs[0], epochs[1])
  assert [len(batch[weights]) for batch in epochs[0]] == [7, 7, 7, 7]
  counts = [batch[weights].any(-1).tolist() for batch in epochs[0]]
  assert counts[3] == [True] * 3 + [False] * 4
  assert all(all(some) for some in counts[:3])
  for name, array in epochs[0][3].items():
    assert not array[3:].any(), name
  one_by_one = list(_of(register(tiny_files), kind, batch_size=1, shuffle=False, seed=9).epoch())
  for name in epochs[0][0]:
    np.testing.assert_array_equal(
      np.concatenate([batch[name] for batch in epochs[0]])[:24],
      np.concatenate([batch[name] for batch in one_by_one]),
    )


def test_lists_are_drawn_anew_and_hold_what_is_stored(tiny_files, register):
  found = _of(register(tiny_files), "rerank", batch_size=24, draw=(3, 2), shuffle=False)
  rows = {
    f"{row['question_id']}/{row['sample']}": {
      np.float32(p["score"]): p["from"] for p in row["passages"]
    }
    for row in tiny_files.rows("candidates.jsonl")
  }
  lists = []
  for step in range(2):
    batch = found(step)
    for name, scores, mask in zip(
      found.names(step), batch["passage_scores"], batch["passage_mask"], strict=True
    ):
      sides = [rows[name][score] for score in scores[mask > 0]]
      question_side = sum(side == "question" for side in rows[name].values())
      assert len(sides) == 5
      assert sides.count("question") == min(2, question_side)
    lists.append(batch["passage_scores"])
  assert (lists[0] != lists[1]).any(-1).mean() > 0.8
  other = dataclasses.replace(found, seed=2)
  assert other.names(0) == found.names(0)
  assert (other(0)["passage_scores"] != lists[0]).any(-1).mean() > 0.8


def test_the_best_candidate_is_in_every_list_if_wanted(tiny_files, register):
  dataset = register(tiny_files)
  best = {
    f"{row['question_id']}/{row['sample']}": np.float32(row["passages"][0]["score"])
    for row in tiny_files.rows("candidates.jsonl")
  }
  for keep_best in (True, False):
    found = _of(dataset, "rerank", batch_size=24, draw=(2, 1), keep_best=keep_best)
    batch = found(0)
    is_best = [
      row[0] == best[name]
      for row, name in zip(batch["passage_scores"], found.names(0), strict=True)
    ]
    assert all(is_best) == keep_best


def test_trimming_is_counted_and_told(tiny_files, register, caplog):
  dataset = register(tiny_files)
  assert _of(dataset, "kard", lengths={"inputs": 512, "targets": 64}).trimmed == 0
  assert not caplog.records
  found = _of(dataset, "kard", lengths={"inputs": 80, "targets": 8})
  whole = Batches(
    dataset.task("kard"), "train", lengths={"inputs": 512, "targets": 64}, batch_size=24
  )
  (batch,) = whole.epoch()
  long = int(((batch["encoder_input_tokens"] > 0).sum(-1) > 80).sum())
  assert 0 < long < 24
  assert found.trimmed_features == {"inputs": long, "targets": 24}
  assert found.trimmed == long + 24
  assert f"{long} inputs longer than 80 tokens are cut" in caplog.text
  lists = _of(dataset, "rerank", lengths={"query": 512, "passages": 10})
  (batch,) = Batches(
    dataset.task("rerank"),
    "train",
    lengths={"query": 512, "passages": 99},
    batch_size=24,
    draw=(40, 40),
  ).epoch()
  passages = {tuple(row) for row in batch["passage_tokens"].reshape(-1, 99)}
  assert lists.trimmed_features == {
    "query": 0,
    "passages": sum(np.count_nonzero(row) > 10 for row in passages),
  }


def test_mixtures_keep_their_rates(tiny_files, own_files, register):
  rows = own_files.rationales
  own_files.rewrite("rationales.jsonl", [row for row in rows if row["question_id"] < "train/q 2"])
  first, second = register(tiny_files), register(own_files)
  name = f"mixed_{first.name}"
  registry.register_mixture(name, [first.name, second.name])
  registry.register_mixture(f"{name}_even", [first.name, second.name], rates=[1, 1])
  try:
    sizes = [_of(dataset, "rd").examples for dataset in (first, second)]
    assert sizes[0] == 24 > sizes[1] > 0
    shares = {}
    for mixture in (name, f"{name}_even"):
      found = Batches(f"{mixture}_rd", "train", lengths=_STUDENT, batch_size=10, seed=3)
      assert found.examples == sum(sizes)
      names = [name for step in range(40) for name in found.names(step)]
      shares[mixture] = np.mean([n.startswith(second.task("rd") + ":") for n in names])
      seen = {n for n in names if n.startswith(second.task("rd"))}
      assert len(seen) == sizes[1]
      assert sum(batch["decoder_loss_weights"].any(-1).sum() for batch in found.epoch()) == sum(
        sizes
      )
    assert shares[name] == pytest.approx(sizes[1] / sum(sizes), abs=0.03)
    assert shares[f"{name}_even"] == pytest.approx(0.5, abs=0.01)
    lists = Batches(f"{name}_rerank", "train", lengths=_LISTS, batch_size=10, seed=3)
    alone = _of(second, "rerank", shuffle=False, draw=(99, 0), batch_size=sizes[1])(0)
    whole = Batches(f"{name}_rerank", "train", lengths=_LISTS, batch_size=60, draw=(99, 0))
    (both,) = whole.epoch()
    for feature, array in alone.items():
      np.testing.assert_array_equal(both[feature][24 : 24 + sizes[1]], array)
    assert lists(2)["passage_mask"].any(-1).all()
  finally:
    for mixture in (name, f"{name}_even"):
      for kind in registry.KINDS:
        seqio.MixtureRegistry.remove(f"{mixture}_{kind}")


def test_a_task_from_elsewhere(register, tiny_files):
  import tensorflow as tf

  vocabulary = register(tiny_files).vocabulary
  feature = seqio.Feature(vocabulary, add_eos=False)
  seqio.TaskRegistry.add(
    "elsewhere",
    seqio.FunctionDataSource(
      lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(
        {"inputs": ["tin", "iron and gold"], "targets": ["lead", "tin"]}
      ),
      splits=["train"],
    ),
    output_features={"inputs": feature, "targets": feature},
    preprocessors=[seqio.preprocessors.tokenize],
  )
  try:
    found = Batches("elsewhere", "train", lengths={"inputs": 4, "targets": 4}, batch_size=2)
    assert sorted(found.names(0)) == ["train/0", "train/1"]
    (batch,) = found.epoch()
    assert batch["encoder_input_tokens"][1].tolist() == vocabulary.encode("iron and gold")[:4]
  finally:
    seqio.TaskRegistry.remove("elsewhere")


def test_what_cannot_be_asked_for(tiny_files, own_files, register):
  dataset = register(own_files)
  good = {"lengths": _STUDENT, "batch_size": 4}
  for arguments, message in [
    ({"lengths": {"inputs": 4}}, "inputs, targets"),
    ({"lengths": {"inputs": 4, "targets": 0}}, "positive"),
    ({"lengths": _STUDENT | {"query": 4}}, "no other"),
    ({"batch_size": 0}, "batch_size"),
    ({"draw": (0, 1)}, "at least 2"),
  ]:
    with pytest.raises(InputError, match=message):
      Batches(dataset.task("rd"), "train", **good | arguments)
  with pytest.raises(InputError, match=f"did you mean {dataset.task('kard')}"):
    Batches(dataset.task("kard") + "x", "train", **good)
  with pytest.raises(InputError, match="no split 'dev'; there are: test, train, validation"):
    Batches(dataset.task("rd"), "dev", **good)(0)
  with pytest.raises(InputError, match="has no work directory yet"):
    Batches(register().task("rd"), "train", **good)(0)
  with pytest.raises(ValueError, match="steps count from 0"):
    Batches(dataset.task("rd"), "train", **good)(-1)
  own_files.rewrite(
    "rationales.jsonl", [row for row in own_files.rationales if "train" in row["question_id"]]
  )
  assert batches_lib.has_examples(dataset.task("kard"), "train")
  for kind in ("rd", "kard", "rerank"):
    assert not batches_lib.has_examples(dataset.task(kind), "validation")
    lengths = _LISTS if kind == "rerank" else _STUDENT
    with pytest.raises(InputError, match="no example in split 'validation'"):
      list(Batches(dataset.task(kind), "validation", lengths=lengths, batch_size=4).epoch())


def test_vocabularies_of_a_mixture_must_agree(tiny_files, own_files, register):
  vocabularies.train_sentencepiece(
    ["other text"] * 9, own_files.path / "vocabulary/sentencepiece.model", 40
  )
  first, second = register(tiny_files), register(own_files)
  name = f"mixed_{first.name}"
  registry.register_mixture(name, [first.name, second.name], rates=[1, 2])
  try:
    found = Batches(f"{name}_rd", "train", lengths=_STUDENT, batch_size=4)
    assert found.vocab_size == first.vocabulary.vocab_size
    with pytest.raises(InputError, match="different vocabularies"):
      found(0)
  finally:
    for kind in registry.KINDS:
      seqio.MixtureRegistry.remove(f"{name}_{kind}")


def test_answering_reads_what_training_read(tiny_files, register):
  dataset = register(tiny_files)
  question = tiny_files.questions["train"][0]
  passages = {passage.id: passage for passage in tiny_files.passages}
  silver = [passages[row["id"]] for row in tiny_files.rows("silver.jsonl")[0]["passages"][:1]]
  batch = next(iter(_of(dataset, "kard").epoch()))
  text = dataset.prompts.student_input(question, silver)
  row = vocabularies.encode(dataset.vocabulary, [text], _STUDENT["inputs"])[0]
  np.testing.assert_array_equal(batch["encoder_input_tokens"][0], row)
  lists = next(iter(_of(dataset, "rerank", draw=(40, 40)).epoch()))
  query = dataset.prompts.reranker_query(question)
  row = vocabularies.encode(dataset.vocabulary, [query], _LISTS["query"])[0]
  np.testing.assert_array_equal(lists["query_tokens"][0], row)
  ids = [passage["id"] for passage in tiny_files.rows("candidates.jsonl")[0]["passages"]]
  texts = [dataset.prompts.passage_text(passages[id]) for id in ids]
  rows = vocabularies.encode(dataset.vocabulary, texts, _LISTS["passages"])
  np.testing.assert_array_equal(lists["passage_tokens"][0, : len(ids)], rows)
