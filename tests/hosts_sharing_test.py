"""`launch/search.py`, `launch/rerank.py --lists` and `launch/index.py` on several processes."""

import gzip

import pytest

from kard_jax.core import files, hosts
from kard_jax.retrieval import index as index_lib
from kard_jax.retrieval import passages as passages_lib
from launch import index, rerank, search
from tests import rerank_launcher_test as reranking
from tests.processes import Processes

model = reranking.model  # the golden cross-encoder
LISTS = reranking.ROWS * 2


@pytest.fixture
def as_process(monkeypatch):
  """Makes this process one of several, which come to each meeting: the last first, then process 0.

  What it gives starts a launcher as each of them in turn.
  """

  def run(count, launch):
    met = []
    monkeypatch.setattr(hosts, "count", lambda: count)
    monkeypatch.setattr(hosts, "agree", lambda name, make: "told")
    monkeypatch.setattr(hosts, "meet", lambda name, timeout=0.0: met[-1].append(name))
    for number in reversed(range(count)):
      monkeypatch.setattr(hosts, "index", lambda number=number: number)
      met.append([])
      assert launch() == 0
    assert all(names == met[0] for names in met)  # or they would wait for each other for ever
    assert bool(met[0]) == (count > 1)

  return run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
  texts = [f"red w{number % 7} w{number % 5} text" for number in range(60)]
  files.write_jsonl(path, ({"id": f"p{n}", "text": text} for n, text in enumerate(texts)))
  return path


@pytest.fixture(scope="module")
def knowledge(corpus):
  folder = corpus.parent / "knowledge"
  assert index.main([f"--passages={corpus}", f"--out={folder}"]) == 0
  return folder


@pytest.fixture(scope="module")
def queries(corpus):
  path = corpus.parent / "queries.tsv"
  path.write_text("".join(f"q{n}\tw{n % 7} and w{n % 5}\n" for n in range(11)))
  return path


@pytest.mark.parametrize("count", [2, 3, 12])
@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.trec"])
def test_a_file_of_queries_is_shared(count, name, as_process, knowledge, queries, tmp_path):
  flags = [f"--index={knowledge}", f"--queries={queries}", "--k=5"]
  flags += ["--format=trec"] if name.endswith("trec") else []
  assert search.main([*flags, f"--out={tmp_path / ('one' + name)}"]) == 0
  searched = []

  def launch():
    advance, searched[len(searched) :] = search.bm25.top_k, [0]

    def counted(index, queries, *rest, **options):
      searched[-1] += len(queries)
      return advance(index, queries, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(search.bm25, "top_k", counted)
      return search.main([*flags, f"--out={tmp_path / name}"])

  as_process(count, launch)
  assert sum(searched) == 11
  assert max(searched) - min(searched) <= 1
  one, several = ((tmp_path / place).read_bytes() for place in ("one" + name, name))
  assert one == several
  assert len(gzip.decompress(one) if name.endswith("gz") else one) > 1000
  assert {path.name for path in tmp_path.iterdir()} == {name, "one" + name}  # no part is left


def test_queries_on_the_command_line_are_process_0s(as_process, knowledge, capsys, tmp_path):
  as_process(2, lambda: search.main([f"--index={knowledge}", "w1", f"--out={tmp_path / 'o'}"]))
  assert len((tmp_path / "o").read_text().splitlines()) == 1


@pytest.mark.parametrize("flags", [["--queries=-", "--out=out"], ["--queries={queries}"]])
def test_several_processes_need_files(flags, monkeypatch, knowledge, queries, capsys):
  monkeypatch.setattr(hosts, "count", lambda: 2)
  given = [flag.format(queries=queries) for flag in flags]
  assert search.main([f"--index={knowledge}", *given]) == 2
  assert "several processes need a file of --queries, and --out" in capsys.readouterr().err


def test_a_part_that_process_0_does_not_see_is_told(
  monkeypatch, knowledge, queries, capsys, tmp_path
):
  monkeypatch.setattr(hosts, "count", lambda: 2)
  monkeypatch.setattr(hosts, "agree", lambda name, make: "told")
  monkeypatch.setattr(hosts, "meet", lambda name, timeout=0.0: None)
  flags = [f"--index={knowledge}", f"--queries={queries}", f"--out={tmp_path / 'out'}"]
  assert search.main(flags) == 2
  assert "host 1 wrote it; do all see one folder?" in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def same_but_for_scores_bits(one, several):
  rows = [[row for _, row in files.read_jsonl(path)] for path in (one, several)]
  assert len(rows[0]) == len(LISTS)
  for a, b in zip(*rows, strict=True):
    scores = [[passage.pop("score") for passage in row["passages"]] for row in (a, b)]
    assert a == b
    assert scores[1] == pytest.approx(scores[0], abs=1e-6)


def test_lists_are_shared(model, as_process, tmp_path):
  files.write_jsonl(tmp_path / "lists.jsonl", LISTS)
  given = [f"--cross_encoder={model}", f"--lists={tmp_path / 'lists.jsonl'}"]
  given += ["--query_length=8", "--passage_length=16"]
  assert rerank.main([*given, f"--out={tmp_path / 'one'}"]) == 0
  as_process(2, lambda: rerank.main([*given, f"--out={tmp_path / 'two'}"]))
  same_but_for_scores_bits(tmp_path / "one", tmp_path / "two")


def test_an_index_is_process_0s(as_process, knowledge, corpus, tmp_path, monkeypatch):
  made = []
  alone = index.alone
  monkeypatch.setattr(index, "alone", lambda given: made.append(hosts.index()) or alone(given))
  as_process(3, lambda: index.main([f"--passages={corpus}", f"--out={tmp_path / 'new'}"]))
  assert made == [0]
  assert_same_index(knowledge, tmp_path / "new")


def assert_same_index(one, other):
  found = [index_lib.open(folder / "bm25", verify=True) for folder in (one, other)]
  index_lib.check_corpus(found[1], passages_lib.Passages(one / "passages"))
  assert len(found[0]) == len(found[1]) == 60


@pytest.mark.slow
def test_processes_index_search_and_rerank(model, knowledge, corpus, queries, tmp_path):
  def run(name, command, count):
    with Processes([f"launch/{name}.py", *command], count, tmp_path / "logs") as processes:
      assert processes.wait(200) == [0] * count, processes.told()

  run("index", [f"--passages={corpus}", f"--out={tmp_path / 'knowledge'}"], 3)
  assert_same_index(knowledge, tmp_path / "knowledge")
  flags = [f"--index={knowledge}", f"--queries={queries}", "--k=5"]
  assert search.main([*flags, f"--out={tmp_path / 'one.jsonl'}"]) == 0
  run("search", [*flags, f"--out={tmp_path / 'three.jsonl'}"], 3)
  text = (tmp_path / "one.jsonl").read_bytes()
  assert text == (tmp_path / "three.jsonl").read_bytes()
  assert len(text.splitlines()) == 11
  files.write_jsonl(tmp_path / "lists.jsonl", LISTS)
  flags = [f"--cross_encoder={model}", f"--lists={tmp_path / 'lists.jsonl'}"]
  flags += ["--query_length=8", "--passage_length=16"]
  assert rerank.main([*flags, f"--out={tmp_path / 'one'}"]) == 0
  run("rerank", [*flags, f"--out={tmp_path / 'two'}"], 2)
  same_but_for_scores_bits(tmp_path / "one", tmp_path / "two")
