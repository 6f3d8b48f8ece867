"""`launch/search.py`: tables for people, rows and runs for programs, and words about bad input."""

import gzip
import io
import json
import pathlib
import subprocess
import sys

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from kard_jax.retrieval import bm25, search_xla, table
from kard_jax.retrieval import index as index_lib
from kard_jax.retrieval import passages as passages_lib
from kard_jax.retrieval.analyzer import Analyzer
from kard_jax.retrieval.passages import Passage
from launch import search as launcher

ROOT = pathlib.Path(__file__).resolve().parents[1]
LATE = (
  "Nothing of note stands here at all. " * 9 + "At last, Oxygen binds to red cells of the blood."
)
PASSAGES = [
  Passage("blood/1", "Blood", "Red blood cells carry oxygen to the tissues."),
  Passage("blood/2", "Blood", LATE),
  Passage("metal/1", "", "Gallium melts in the hand. It is a metal."),
  Passage("[b]odd", "[bold]Odd[/bold]", "A \x1b[31mred\x1b[0m line\nbroken\tin [red]two[/red]."),
  *[Passage(f"same/{number}", "", "tin tin copper") for number in range(5)],
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return stored(tmp_path_factory.mktemp("search") / "knowledge", PASSAGES)


def stored(place, rows):
  place.mkdir()
  passages_lib.write(rows, place / "passages")
  index_lib.build(passages_lib.Passages(place / "passages"), place / "bm25")
  return place


@pytest.fixture(autouse=True)
def _narrow(monkeypatch, tmp_path):
  monkeypatch.setenv("COLUMNS", "70")
  monkeypatch.chdir(tmp_path)


def run(folder, *flags):
  return launcher.main([f"--index={folder}", *flags])


def rows(text):
  return [json.loads(line) for line in text.splitlines()]


# ---- a table


def test_a_query_gives_a_table_that_fits(folder, capsys):
  assert run(folder, "What carries oxygen in red blood?", "--k=2") == 0
  shown = capsys.readouterr().out
  assert max(map(len, shown.splitlines())) <= 70
  assert "\x1b" not in shown  # no terminal, no colours
  lines = [line.split() for line in shown.splitlines()]
  assert lines[0] == ["What", "carries", "oxygen", "in", "red", "blood?"]
  assert (lines[2][0], lines[2][2:]) == ("1", ["blood/1", "Blood"])
  assert (lines[4][0], lines[4][2:]) == ("2", ["blood/2", "Blood"])
  hits = bm25.top_k(index_lib.open(folder / "bm25"), ["What carries oxygen in red blood?"], 2)
  assert [lines[2][1], lines[4][1]] == [f"{score:.4f}" for score in hits.scores_BxK[0]]
  assert "Oxygen binds to red cells of the blood" in shown  # far behind the line's width
  assert "stands here at all. Nothing" not in shown


def test_what_is_stored_does_nothing_to_the_terminal(folder, capsys):
  assert run(folder, "broken line") == 0
  shown = capsys.readouterr().out
  assert "[b]odd  [bold]Odd[/bold]" in shown
  assert "A [31mred [0m line broken in [red]two[/red]." in shown


def test_no_text_nothing_found_and_several_queries(folder, capsys):
  assert run(folder, "gallium", "the of", "zirconium", "--no-text") == 0
  shown = capsys.readouterr().out
  assert "metal/1" in shown
  assert "melts" not in shown
  assert shown.count("nothing found") == 2


def test_words_are_set_off_by_their_terms():
  analyzer = Analyzer()
  line = table.shortened(
    "One cell's oxygenated. Cellar; CELLS!", set(analyzer("cells")), analyzer, 60
  )
  assert [line.plain[span.start : span.end] for span in line.spans] == ["cell's", "CELLS"]
  output = io.StringIO()
  console = Console(file=output, force_terminal=True, width=60, color_system="standard")
  row = {"id": "a", "score": 1.5, "title": "", "text": "Two cells."}
  table.show("cell", [row], analyzer, console)
  assert "\x1b[1;33mcells\x1b[0m" in output.getvalue()


@hypothesis.settings(deadline=None, max_examples=150)
@hypothesis.given(
  st.lists(st.sampled_from(["red cells", "cell", " ", "\n", "人民", "🇩🇪", "x" * 30, "\x1b[2J"])),
  st.integers(8, 60),
  st.sampled_from(["english", "unicode", "whitespace"]),
)
def test_any_text_is_cut_to_one_line_that_shows_a_hit(parts, width, kind):
  analyzer = Analyzer(kind)
  text = " ".join(parts)
  terms = set(analyzer("cells 民"))
  line = table.shortened(text, terms, analyzer, width)
  assert cell_len(line.plain) <= width
  assert line.plain.isprintable()
  for span in line.spans:
    word = line.plain[span.start : span.end]
    assert set(analyzer(word)) & terms or "…" in word or word == " "  # cut in the middle
  if terms & set(analyzer(text)) and width >= 30:
    assert line.spans


# ---- rows and runs


def test_rows_are_what_top_k_finds(folder, monkeypatch, capsysbinary):
  texts = ["red blood cells", "tin", "", "copper metal oxygen", "zirconium", *["tin"] * 9]
  pathlib.Path("q.txt").write_text("\n".join(texts) + "\n")
  assert run(folder, "--queries=q.txt", "--k=4") == 0
  whole = capsysbinary.readouterr().out
  numbers = [number for number, text in enumerate(texts, 1) if text]  # the blank line has none
  found = rows(whole.decode())
  assert [row["query_id"] for row in found] == list(map(str, numbers))
  hits = bm25.top_k(index_lib.open(folder / "bm25"), [text for text in texts if text], 4)
  for row, ids, scores in zip(found, *hits, strict=True):
    assert row["query"] == texts[int(row["query_id"]) - 1]
    expected = [
      (vars(PASSAGES[at]), score) for at, score in zip(ids, scores, strict=True) if at >= 0
    ]
    for got, (passage, score) in zip(row["passages"], expected, strict=True):
      assert got == {**passage, "score": got["score"]}
      assert list(got) == ["id", "score", "title", "text"]
      assert np.float32(got["score"]) == score
  assert [hit["id"] for hit in found[1]["passages"]] == [f"same/{n}" for n in range(4)]  # ties
  monkeypatch.setattr(launcher, "_BATCH", 3)
  monkeypatch.setattr(launcher, "_READ", 5)
  assert run(folder, "--queries=q.txt", "--k=4", "--threads=1") == 0
  assert capsysbinary.readouterr().out == whole
  assert run(folder, "--queries=q.txt", "--k=4", "--out=new/found.jsonl.gz") == 0
  assert gzip.decompress(pathlib.Path("new/found.jsonl.gz").read_bytes()) == whole
  assert run(folder, "--queries=q.txt", "--k=4", "--no-text") == 0
  bare = rows(capsysbinary.readouterr().out.decode())
  keep = [
    [{name: hit[name] for name in ("id", "score")} for hit in row["passages"]] for row in found
  ]
  assert [row["passages"] for row in bare] == keep


def test_run_lines(folder, capsys):
  pathlib.Path("q.tsv").write_text("q7\tgallium metal\nq8\tzirconium\nq9\ttin\n")
  assert run(folder, "--queries=q.tsv", "--format=trec", "--k=2") == 0
  lines = [line.split(" ") for line in capsys.readouterr().out.splitlines()]
  assert [line[:4] for line in lines] == [
    ["q7", "Q0", "metal/1", "1"],
    ["q9", "Q0", "same/0", "1"],
    ["q9", "Q0", "same/1", "2"],
  ]
  assert all(float(line[4]) > 0 and line[5:] == ["kard_jax"] for line in lines)


def test_k_beyond_the_corpus(folder, capsys):
  assert run(folder, "tin", f"--k={10**12}", "--format=jsonl") == 0
  assert len(rows(capsys.readouterr().out)[0]["passages"]) == 5


@pytest.mark.parametrize(
  ("name", "content", "expected"),
  [
    ("q.txt", "tin\r\n\n  \n{copper}\n", {"1": "tin", "4": "{copper}"}),
    ("q.tsv", "a\ttin\tcopper\n", {"a": "tin\tcopper"}),
    (
      "q.jsonl",
      '{"id": "a", "text": "tin"}\n\n{"_id": 7, "question": "ore"}',
      {"a": "tin", "7": "ore"},
    ),
    ("q.jsonl", '{"query": "tin"}\n{"id": "1a", "query": "ö"}\n', {"1": "tin", "1a": "ö"}),
    ("q.jsonl.gz", '{"id": "a", "text": "tin"}\n', {"a": "tin"}),
    ("topics", '\ufeff{"id": "a", "text": "tin"}\n', {"a": "tin"}),
    ("topics.gz", "\ufefftin\n{}\n", {"1": "tin", "2": "{}"}),
  ],
)
def test_files_of_queries(folder, capsys, name, content, expected):
  data = content.encode()
  pathlib.Path(name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
  assert run(folder, f"--queries={name}", "--no-text") == 0
  assert {row["query_id"]: row["query"] for row in rows(capsys.readouterr().out)} == expected


@pytest.mark.parametrize(
  ("content", "expected"),
  [("tin\n\nore", {"1": "tin", "3": "ore"}), (' {"_id": "a", "text": "tin"}\n', {"a": "tin"})],
)
def test_queries_from_standard_input(folder, capsys, monkeypatch, content, expected):
  monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
  assert run(folder, "--queries=-", "--no-text") == 0
  assert {row["query_id"]: row["query"] for row in rows(capsys.readouterr().out)} == expected


def test_another_field(folder, capsys):
  row = {"question_id": "x", "rationale": "tin", "text": "gallium", "query": "red"}
  pathlib.Path("r.jsonl").write_text(json.dumps(row))
  assert run(folder, "--queries=r.jsonl", "--field=rationale") == 0
  (found,) = rows(capsys.readouterr().out)
  assert (found["query_id"], found["query"]) == ("1", "tin")


def test_progress_is_for_people(folder, capsys, monkeypatch):
  pathlib.Path("q.txt").write_text("tin\n" * 7)
  for looked_on in (False, True):
    monkeypatch.setattr(sys.stderr, "isatty", lambda on=looked_on: on)
    assert run(folder, "--queries=q.txt", "--out=o.jsonl") == 0
    assert ("7 queries" in capsys.readouterr().err) == looked_on


# ---- bad input


GOOD = '{"id": "a", "text": "tin"}\n'


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("q.txt", "", "q.txt: no queries"),
    ("q.txt", "\n \n", "q.txt: no queries"),
    ("q.txt", b"tin\n\xff\n", "q.txt:2: not UTF-8"),
    ("q.txt.gz", "tin", "q.txt.gz: not a whole gzip file"),
    ("q.tsv", "a\ttin\nb tin\n", "q.tsv:2: id, tab and query are needed, this is 'b tin'"),
    ("q.tsv", "a\ttin\nb\t \n", "q.tsv:2: the query is empty"),
    ("q.jsonl", GOOD + "{", "q.jsonl:2: not JSON"),
    ("q.jsonl", GOOD + "[1]", "q.jsonl:2: a JSON object is needed"),
    ("q.jsonl", GOOD + '{"id": "b", "text": " "}', "q.jsonl:2: the query is empty"),
    ("q.jsonl", GOOD + '{"id": "b", "text": 3}', "q.jsonl:2: 'text' has to be a string, not 3"),
    ("q.jsonl", GOOD + '{"id": "b", "stem": "x"}', "the fields are 'id', 'stem': name one by --fi"),
    ("q.jsonl", '{"text": "x", "query": "y"}', "q.jsonl:1: 'text' and 'query': name one by --fi"),
    ("q.jsonl", GOOD + "\n" + GOOD, "q.jsonl:3: the id 'a' stands in line 1 already"),
    ("q.jsonl", '{"id": true, "text": "x"}', "q.jsonl:1: the id has to be a string or a whole"),
    ("q.jsonl", '{"id": "\\ud800", "text": "x"}', "q.jsonl:1: not valid Unicode"),
    ("q.jsonl", '{"text": "x \\ud800"}', "q.jsonl:1: not valid Unicode"),
  ],
)
def test_bad_queries_are_named_and_nothing_is_written(folder, capsys, name, content, message):
  pathlib.Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
  pathlib.Path("old.jsonl").write_text("old")
  assert run(folder, f"--queries={name}", "--out=old.jsonl") == 2
  error = capsys.readouterr().err
  assert message in error
  assert error.count("\n") == 1
  assert pathlib.Path("old.jsonl").read_text() == "old"
  assert sorted(path.name for path in pathlib.Path().iterdir()) == sorted([name, "old.jsonl"])


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["tin", "--k=0"], "--k=0: at least 1"),
    (["tin", "--threads=0"], "--threads=0: at least 1"),
    (["tin", " "], "query 2 on the command line is empty"),
    (["tin \udcff"], "query 1 on the command line is not valid Unicode"),
    (["tin", "--field=x"], "--field is for --queries"),
    (["tin", "--out=x", "--format=table"], "--format=table is to be read at once"),
    (["tin", "--out=."], "--out=.: a folder; name a file"),
    (["tin", "--out=q.txt/x"], "--out=q.txt/x: cannot be written"),
    (["--queries=none.txt"], "none.txt: no such file"),
    (["--queries=."], ".: a folder; name a file of queries"),
  ],
)
def test_bad_flags(folder, capsys, flags, message):
  pathlib.Path("q.txt").write_text("tin")
  assert run(folder, *flags) == 2
  assert message in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["tin", "--queries=q.txt"], ["tin", "--k=ten"]])
def test_usage(folder, capsys, flags):
  with pytest.raises(SystemExit) as ended:
    run(folder, *flags)
  assert ended.value.code == 2
  assert "usage:" in capsys.readouterr().err


def test_ids_that_a_run_cannot_hold(tmp_path, capsys):
  place = stored(tmp_path / "k", [Passage("Julius Caesar-75", "", "tin")])
  assert run(place, "tin", "--format=trec", "--out=run.txt") == 2
  assert "white space in the id 'Julius Caesar-75'" in capsys.readouterr().err
  assert not pathlib.Path("run.txt").exists()


def test_folders_that_are_none(folder, tmp_path, capsys):
  for place, named in [("none", "none"), (folder / "bm25", folder / "bm25" / "passages")]:
    assert run(place, "tin") == 2
    assert f"{named}: no such folder; --index is to be" in capsys.readouterr().err


def test_an_index_of_other_passages(tmp_path, capsys):
  place = stored(tmp_path / "k", [Passage("a", "", "tin")])
  passages_lib.write([Passage("a", "", "copper")], place / "passages")
  assert run(place, "tin") == 2
  assert "built from other passages" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["bm25/segment-00000/data.npy", "passages/ids_data.npy"])
def test_damage_is_told_not_searched(tmp_path, capsys, part):
  place = stored(tmp_path / "k", PASSAGES)
  data = bytearray((place / part).read_bytes())
  data[-9] ^= 4
  (place / part).write_bytes(data)
  flags = ["--verify"] if part.startswith("passages") else []
  assert run(place, "tin", "--out=o", *flags) == 2
  assert f"{part}: its bytes changed after it was written" in capsys.readouterr().err
  assert not pathlib.Path("o").exists()


# ---- by itself


def test_a_search_on_the_processor_needs_no_jax(folder, tmp_path):
  code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from launch import search
status = search.main(["--index={folder}", "tin", "--format=jsonl"])
heavy = [name for name in ("jax", "tensorflow") if name in sys.modules]
assert not heavy, heavy
sys.exit(status)
"""
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert rows(done.stdout)[0]["passages"][0]["id"] == "same/0"


def test_a_reader_that_has_enough(folder):
  pathlib.Path("q.txt").write_text("tin\n" * 20_000)
  command = [sys.executable, ROOT / "launch/search.py", f"--index={folder}", "--queries=q.txt"]
  with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
    assert json.loads(process.stdout.readline())["query_id"] == "1"
    process.stdout.close()
    assert process.stderr.read() == b""
  assert process.returncode == 1


def test_accelerators_are_used_where_jax_has_some(folder, monkeypatch, tmp_path):
  index = index_lib.open(folder / "bm25")
  used = []
  real = search_xla.searcher
  monkeypatch.setattr(search_xla, "searcher", lambda *given: used.append(given) or real(*given))
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(bm25, "_may_have_accelerators", lambda: False)
  kernels = bm25.top_k(index, ["tin"], 3)
  assert not used
  monkeypatch.setattr(bm25, "_may_have_accelerators", lambda: True)
  np.testing.assert_array_equal(bm25.top_k(index, ["tin"], 3).scores_BxK, kernels.scores_BxK)
  assert len(used) == 1
  monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
  bm25.top_k(index, ["tin"], 3)
  assert len(used) == 1


def test_a_plug_in_of_jax_is_noticed(monkeypatch, tmp_path):
  ask = bm25._may_have_accelerators.__wrapped__
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  if ask():
    pytest.skip("this machine's JAX has plug-ins")
  monkeypatch.setenv("TPU_LIBRARY_PATH", "/lib/libtpu.so")
  assert ask()
  monkeypatch.delenv("TPU_LIBRARY_PATH")
  (tmp_path / "jax_plugins" / "xla_new").mkdir(parents=True)
  monkeypatch.syspath_prepend(tmp_path)
  assert ask()
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  assert not ask()
