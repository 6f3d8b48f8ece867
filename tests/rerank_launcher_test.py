"""launch/rerank.py: lists in any file by a cross-encoder, and a recipe's held-out lists."""

import json

import jax
import numpy as np
import pytest

from kard_jax.convert import cross_encoder
from kard_jax.core import files
from kard_jax.core.partitioning import Partitioner
from kard_jax.reranker import score
from launch import rerank
from tests.convert import bert_test, folders
from tests.reranker import score_test

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(45))]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """The golden cross-encoder with a vocabulary of whole words."""
  folder = bert_test.folder_of(tmp_path_factory.mktemp("model"), "bert_scorer")
  (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
  (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
  return folder


ROWS = [
  {"question": "w1 w2", "passages": [{"text": "w3 w4", "id": "a"}, {"text": "w5", "title": "w6"}]},
  {"query": "w7", "id": 5, "passages": []},
  {"query": "w8 w9", "passages": [{"text": f"w{i} w{i + 3}"} for i in range(10, 20)]},
]


def run(model, tmp_path, rows, *flags):
  files.write_jsonl(tmp_path / "lists.jsonl", rows)
  given = [f"--cross_encoder={model}", f"--lists={tmp_path / 'lists.jsonl'}"]
  return rerank.main([*given, f"--out={tmp_path / 'out.jsonl'}", *flags])


def test_lists_are_ranked_by_the_cross_encoder(model, tmp_path):
  assert run(model, tmp_path, ROWS) == 0
  out = [row for _, row in files.read_jsonl(tmp_path / "out.jsonl")]
  assert [{k: v for k, v in row.items() if k != "passages"} for row in out] == [
    {k: v for k, v in row.items() if k != "passages"} for row in ROWS
  ]
  for row, mine in zip(ROWS, out, strict=True):
    scores = [passage["score"] for passage in mine["passages"]]
    assert scores == sorted(scores, reverse=True)
    bare = [{k: v for k, v in p.items() if k != "score"} for p in mine["passages"]]
    assert sorted(map(str, bare)) == sorted(map(str, row["passages"]))
  network, params = cross_encoder.load(model)
  ids = {word: number for number, word in enumerate(WORDS)}
  tokens = lambda text: np.array([2, *(ids[word] for word in text.split()), 3], np.int32)
  (want,) = score.rerank_scores(
    network, params, [tokens("w8 w9")], [[tokens(p["text"]) for p in ROWS[2]["passages"]]]
  )
  by_text = {p["text"]: p["score"] for p in out[2]["passages"]}
  np.testing.assert_allclose([by_text[p["text"]] for p in ROWS[2]["passages"]], want, atol=1e-6)
  assert np.std(want) > 0.01


ODD = [
  {"query": "w1 w2", "passages": [{"text": "w3"}]},  # one candidate
  {"query": "w1", "passages": [{"text": "w4", "id": at} for at in "abc"]},  # all alike
  {"query": "w1", "passages": [{"text": ""}, {"text": "w5"}, {"text": " \n"}]},
  {"query": "w2", "passages": [{"text": "w6 " * 5000, "id": 0}, {"text": "w6 " * 9, "id": 1}]},
  {
    "query": "w3",
    "passages": [{"text": "Что такое сталь?"}, {"text": "鋼とは何か"}, {"text": "w7"}],
  },
  {
    "query": "水は何度で沸くか",
    "passages": [{"text": "w8", "title": None}, {"text": "w8", "title": ""}],
  },
  {"query": "w9 " * 5000, "passages": [{"text": "w9"}, {"text": "w8"}]},
]


def test_odd_lists_are_ranked_and_kept_as_they_are(model, tmp_path):
  lengths = "--query_length=8", "--passage_length=16"
  assert run(model, tmp_path, ODD, *lengths) == 0
  out = [row for _, row in files.read_jsonl(tmp_path / "out.jsonl")]
  scores = [[passage.pop("score") for passage in row["passages"]] for row in out]
  assert np.isfinite(np.concatenate(scores)).all()
  assert all(some == sorted(some, reverse=True) for some in scores)
  for row, mine in zip(ODD, out, strict=True):
    assert sorted(map(str, mine["passages"])) == sorted(map(str, row["passages"]))
  assert out[1] == ODD[1]  # equal scores stay in their order
  assert len(set(scores[1])) == len(set(scores[5])) == 1
  assert len(set(scores[2])) == 2  # nothing, and spaces, say the same
  # one longer than what is read is cut there, not refused
  short = [{"query": "w2", "passages": [{"text": "w6 " * 14}]}]
  assert run(model, tmp_path, short, *lengths) == 0
  ((_, cut),) = files.read_jsonl(tmp_path / "out.jsonl")
  by_id = {p["id"]: s for p, s in zip(out[3]["passages"], scores[3], strict=True)}
  np.testing.assert_allclose(cut["passages"][0]["score"], by_id[0], atol=1e-6)
  assert abs(by_id[0] - by_id[1]) > 1e-4


def test_the_best_alone_can_be_kept(model, tmp_path):
  assert run(model, tmp_path, ROWS, "--k=3") == 0
  out = [row for _, row in files.read_jsonl(tmp_path / "out.jsonl")]
  assert [len(row["passages"]) for row in out] == [2, 0, 3]


@pytest.mark.parametrize(
  ("row", "complaint"),
  [
    ({"passages": []}, 'lists.jsonl:2: a text "query" (or "question") is needed'),
    ({"query": "w1"}, 'lists.jsonl:2: "passages" is to be a list'),
    ({"query": "w1", "passages": [{"title": "w1"}]}, 'lists.jsonl:2: passage 0 has no "text"'),
    ({"query": " ", "passages": []}, 'lists.jsonl:2: a text "query" (or "question") is needed'),
    ({"query": "w1", "passages": ["w2"]}, 'lists.jsonl:2: passage 0 has no "text"'),
    ({"query": "w1", "passages": [{"text": None}]}, 'lists.jsonl:2: passage 0 has no "text"'),
    (
      {"query": "w1", "passages": [{"text": "w2"}, {"text": "w3", "title": 5}]},
      'lists.jsonl:2: the "title" of passage 1 is no text',
    ),
  ],
)
def test_broken_lines_are_told(model, tmp_path, row, complaint, capsys):
  assert run(model, tmp_path, [ROWS[0], row]) == 2
  assert complaint in capsys.readouterr().err
  assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
  ("flag", "complaint"),
  [
    ("--k=0", "--k=0: at least 1 is needed"),
    ("--query_length=0", "--query_length=0: at least 1 is needed"),
    ("--passage_length=-1", "--passage_length=-1: at least 1 is needed"),
    ("--passage_length=600", "bert.Bert.max_positions = "),
  ],
)
def test_flags_that_cannot_be_are_told(model, tmp_path, flag, complaint, capsys):
  rows = [{"query": "w1 " * 100, "passages": [{"text": "w2 " * 1000}]}]
  assert run(model, tmp_path, rows, flag) == 2
  assert complaint in capsys.readouterr().err
  assert not (tmp_path / "out.jsonl").exists()


def test_lengths_are_the_recipes_where_there_is_one(tmp_path, capsys):
  gin_file = "--gin_file=gin_configs/recipes/strategyqa_rerank/6_rerank.gin"
  flags = [gin_file, f"--lists={tmp_path / 'x'}", f"--out={tmp_path / 'y'}"]
  with pytest.raises(SystemExit):
    rerank.main([*flags, "--query_length=8"])
  assert "set it by --gin.QUERY_LENGTH=N" in capsys.readouterr().err


def test_a_mesh_gives_the_same_scores():
  queries, lists = score_test.ragged()
  partitioner = Partitioner(
    axes={"data": 4, "tensor": 2},
    rules=[("batch", "data"), ("heads", "tensor"), ("vocab", "tensor")],
  )
  for net in (score_test.LATE, score_test.CROSS):
    params = score_test.params_of(net)
    expected = score_test.run(net, params, queries, lists)
    done = []
    with partitioner.active():
      boxed = jax.eval_shape(
        net.init, jax.random.key(0), np.ones((1, 2), np.int32), np.ones((1, 1, 2), np.int32)
      )["params"]
    split = jax.device_put(params, partitioner.shardings(boxed))
    scores = score.rerank_scores(
      net, split, queries, lists, tokens_per_call=128, partitioner=partitioner, progress=done.append
    )
    for mine, want in zip(scores, expected, strict=True):
      np.testing.assert_allclose(mine, want, rtol=1e-5, atol=1e-5)
    assert sum(done) == sum(map(len, lists))


def test_the_golden_folder_is_a_cross_encoder():
  assert "classifier.weight" in folders.golden("bert_scorer")[1]
