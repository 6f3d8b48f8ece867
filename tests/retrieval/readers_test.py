"""Files of passages: each format, what is wrong in them, and the cutting into blocks of words."""

import csv
import gzip
import io
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kard_jax.core.files import InputError
from kard_jax.retrieval import ids, passages, readers
from kard_jax.retrieval.passages import Passage


def put(tmp_path, name, text):
  """A file of this text, through gzip where the name says so."""
  path = tmp_path / name
  path.parent.mkdir(parents=True, exist_ok=True)
  data = text if isinstance(text, bytes) else text.encode()
  path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
  return path


def jsonl(*rows):
  return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def read(path, **options):
  return list(readers.open_corpus(path, **options))


GOOD = {"id": "a", "title": "T", "text": "x"}
PLACES = ["corpus.jsonl", "corpus.jsonl.gz", "of_no_known_ending", "of_no_known_ending.gz"]


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("key", ["id", "_id"])
def test_jsonl(tmp_path, name, key):
  rows = {key: "a", "title": "T", "text": "x"}, "", {key: "b", "text": "é\n", "metadata": {"n": 1}}
  path = put(tmp_path, name, jsonl(*rows, {key: "c", "title": None, "text": "z"}))
  expected = [Passage("a", "T", "x"), Passage("b", "", "é\n"), Passage("c", "", "z")]
  assert read(path) == read(path, format="jsonl") == read(path, format="beir") == expected
  assert list(passages.read(path)) == expected


def test_a_document_of_beir_with_a_title_only_says_its_title(tmp_path):
  path = put(tmp_path, "c.jsonl", jsonl({"_id": "a", "title": "T", "text": "", "metadata": {}}))
  assert read(path) == [Passage("a", "", "T")]


def test_id_wins_over_underscore_id(tmp_path):
  assert read(put(tmp_path, "c.jsonl", jsonl({**GOOD, "_id": "other"}))) == [Passage(**GOOD)]


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    ([], r"c\.jsonl: no passages"),
    ([GOOD, "{"], r"c\.jsonl:2: not JSON"),
    ([GOOD, "[1]"], r"c\.jsonl:2: a JSON object is needed"),
    ([GOOD, {"id": "b"}], r"c\.jsonl:2: .*'text' is missing"),
    ([{"text": "b"}], r"c\.jsonl:1: .*'id' is missing"),
    ([GOOD, {"id": "b", "text": " \n"}], r"c\.jsonl:2: 'text' is empty"),
    ([{"id": "b", "title": "T", "text": ""}], r"c\.jsonl:1: 'text' is empty"),
    ([{"_id": "b", "title": "", "text": ""}], r"c\.jsonl:1: 'text' is empty"),
    ([{"id": "", "text": "b"}], r"c\.jsonl:1: 'id' is empty"),
    ([{"id": 3, "text": "b"}], r"c\.jsonl:1: 'id' has to be a string, not 3"),
    ([{**GOOD, "title": ["T"]}], r"c\.jsonl:1: 'title' has to be a string"),
    ([{**GOOD, "text": None}], r"c\.jsonl:1: 'text' has to be a string, not None"),
    ([GOOD, {"id": "b", "text": "y"}, GOOD], r"c\.jsonl:3: the id 'a' stands in line 1"),
    (['{"id": "a", "text": "\\ud800"}'], r"c\.jsonl:1: 'text' is not valid Unicode"),
  ],
)
def test_bad_rows_are_named(tmp_path, rows, message):
  with pytest.raises(InputError, match=message):
    read(put(tmp_path, "c.jsonl", jsonl(*rows)))


def test_bad_bytes_are_named(tmp_path):
  with pytest.raises(InputError, match=r"c\.jsonl:2: not UTF-8"):
    read(put(tmp_path, "c.jsonl", jsonl(GOOD).encode() + b'{"id": "\xff"}\n'))
  path = tmp_path / "c.jsonl.gz"
  whole = gzip.compress(jsonl(*({**GOOD, "id": str(n)} for n in range(5000))).encode())
  for data in (
    b"plain text",
    whole[: len(whole) // 2],
    whole[:-1],
    whole[:99] + b"x" + whole[100:],
  ):
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"c\.jsonl\.gz: not a whole gzip file"):
      read(path)


def test_gzip_of_several_members_is_read(tmp_path):
  path = tmp_path / "c.jsonl.gz"
  path.write_bytes(b"".join(gzip.compress(jsonl({**GOOD, "id": i}).encode()) for i in "ab"))
  assert [passage.id for passage in read(path)] == ["a", "b"]


HEADER = "id\ttext\ttitle\n"
DPR = '1\t"Aaron ( or ; ""Ahärôn"") is a prophet, "\tAaron\n2\tthe "rod" turned\tA\t'


@pytest.mark.parametrize("name", ["psgs_w100.tsv", "psgs_w100.tsv.gz", "psgs"])
def test_dpr(tmp_path, name):
  path = put(tmp_path, name, HEADER + DPR.removesuffix("\t") + '\n\n3\t"two\nlines"\tT\r\n4\tx\t\n')
  expected = [
    Passage("1", "Aaron", 'Aaron ( or ; "Ahärôn") is a prophet, '),
    Passage("2", "A", 'the "rod" turned'),
    Passage("3", "T", "two\nlines"),
    Passage("4", "", "x"),
  ]
  assert read(path) == read(path, format="dpr") == expected


def test_dpr_columns_are_found_by_name(tmp_path):
  path = put(tmp_path, "p.tsv", "title\tid\tmore\ttext\nT\t1\tm\tx\n")
  assert read(path) == [Passage("1", "T", "x")]


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters='\t\n"'))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8))
def test_dpr_as_the_csv_module_writes_it(tmp_path_factory, rows):
  out = io.StringIO()
  writer = csv.writer(out, delimiter="\t", lineterminator="\n")
  writer.writerow(["id", "text", "title"])
  items = [Passage(str(n), title, "." + text) for n, (title, text) in enumerate(rows)]
  writer.writerows((item.id, item.text, item.title) for item in items)
  assert read(put(tmp_path_factory.mktemp("dpr"), "p.tsv", out.getvalue())) == items


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", r"p\.tsv:1: the first line has to name the columns: id<TAB>text<TAB>title"),
    ("1\tx\tT\n", r"p\.tsv:1: the first line has to name the columns"),
    (HEADER, r"p\.tsv: no passages"),
    (HEADER + "1\tx\tT\n2\tx\n", r"p\.tsv:3: 2 columns, not 3"),
    (HEADER + '1\t"a\nb"\tT\n2\tx\tT\tU\n', r"p\.tsv:4: 4 columns, not 3"),
    (HEADER + '1\tx\tT\n2\t"x\tT\n3\tx\tT\n', r"p\.tsv:3: 2 columns.* quote left open"),
    (HEADER + '1\tx\tT\n2\t"x' + "\n" * 200_000, r"p\.tsv:3: .*limit.* quote left open"),
    (HEADER + "1\t \tT\n", r"p\.tsv:2: 'text' is empty"),
    (HEADER + "\tx\tT\n", r"p\.tsv:2: 'id' is empty"),
    (
      HEADER + '1\t"a\nb"\tT\n\n2\tx\t\n1\tx\tT\n',
      r"p\.tsv:6: the id '1' stands in line 2 already",
    ),
  ],
)
def test_bad_dpr_rows_are_named(tmp_path, text, message):
  with pytest.raises(InputError, match=message):
    read(put(tmp_path, "p.tsv", text))


PARAGRAPHS = "\ufeff\n First line\nof two. \r\n\r\n  \n\nSecond é.\n\nThird"
LINES = "\none\n  two \nthree\n\n\n"


@pytest.mark.parametrize("name", ["book.txt", "book.txt.gz"])
def test_plain_text(tmp_path, name):
  path = put(tmp_path, name, PARAGRAPHS)
  expected = [("book.txt:2", "First line of two."), ("book.txt:7", "Second é.")]
  expected = [Passage(id, "", text) for id, text in [*expected, ("book.txt:9", "Third")]]
  assert read(path) == read(path, format="paragraphs") == expected
  lines = read(path, format="lines")
  assert [(p.id, p.text) for p in lines[:2]] == [
    ("book.txt:2", "First line"),
    ("book.txt:3", "of two."),
  ]


def test_text_without_blank_lines_between_is_a_passage_a_line(tmp_path):
  path = put(tmp_path, "facts.txt", LINES)
  assert [(p.id, p.text) for p in read(path)] == [
    ("facts.txt:2", "one"),
    ("facts.txt:3", "two"),
    ("facts.txt:4", "three"),
  ]
  assert [p.text for p in read(path, format="paragraphs")] == ["one two three"]


def test_how_far_a_blank_line_is_looked_for(tmp_path, monkeypatch):
  monkeypatch.setattr(readers, "_LOOK", 10)
  path = put(tmp_path, "far.txt", "a line of more\nand one\n\nand one\n")
  assert len(read(path)) == 3
  monkeypatch.setattr(readers, "_LOOK", 1000)
  assert len(read(path)) == 2


def test_a_folder_of_text(tmp_path):
  put(tmp_path, "c/b.txt", "b\n")
  put(tmp_path, "c/sub/a.txt.gz", "a\n")
  put(tmp_path, "c/notes.md", "not read\n")
  put(tmp_path, "c/.hidden/x.txt", "not read\n")
  put(tmp_path, "c/sub/.hidden/x.txt", "not read\n")
  put(tmp_path, "c/.tmp-x/x.txt", "not read\n")
  put(tmp_path, "c/empty.txt", "\n")
  assert read(tmp_path / "c") == [Passage("b.txt:1", "", "b"), Passage("sub/a.txt:1", "", "a")]


def test_a_folder_of_jsonl(tmp_path):
  put(tmp_path, "c/1.jsonl.gz", jsonl(GOOD))
  put(tmp_path, "c/0.jsonl", jsonl({**GOOD, "id": "b"}))
  assert [passage.id for passage in read(tmp_path / "c")] == ["b", "a"]
  put(tmp_path, "c/2.jsonl", jsonl({**GOOD, "id": "c"}, {**GOOD, "id": "b"}))
  with pytest.raises(InputError, match=r"2\.jsonl:2: the id 'b' stands in .*0\.jsonl:1 already"):
    read(tmp_path / "c")


def test_the_folder_of_a_beir_dataset(tmp_path):
  put(tmp_path, "scifact/corpus.jsonl", jsonl({"_id": "4983", "title": "T", "text": "x"}))
  put(tmp_path, "scifact/queries.jsonl", jsonl({"_id": "0", "text": "q"}))
  put(tmp_path, "scifact/qrels/test.tsv", "query-id\tcorpus-id\tscore\n")
  assert read(tmp_path / "scifact") == [Passage("4983", "T", "x")]


def test_what_cannot_be_opened_is_told_at_once(tmp_path):
  (tmp_path / "empty").mkdir()
  put(tmp_path, "both/a.txt", "a")
  put(tmp_path, "both/a.jsonl", jsonl(GOOD))
  odd = put(tmp_path, "odd", "what is this\n")
  for source, options, message in [
    (tmp_path / "gone", {}, "gone: no such file or folder"),
    ("tfds:wikipedia/20230601.en", {}, "tasks.wikipedia.read take it"),
    (tmp_path / "empty", {}, "empty: no .txt, .jsonl or .tsv file"),
    (tmp_path / "empty", {"format": "lines"}, "empty: no files in this folder"),
    (tmp_path / "both", {}, r"both: files in \.jsonl and \.txt; .* give a format"),
    (odd, {}, "odd:1: of what format"),
    (odd, {"format": "csv"}, "format: one of jsonl, .*, not 'csv'"),
    (odd, {"format": "lines", "words": 0}, "words: at least 1, not 0"),
  ]:
    with pytest.raises(InputError, match=message):
      readers.open_corpus(source, **options)


def test_repeated_ids_are_noticed_soon_and_exactly(tmp_path, monkeypatch):
  rows = [{"id": f"{n}", "text": "x"} for n in range(3000)]
  path = put(tmp_path, "c.jsonl", jsonl(*rows[:20], rows[7], *rows[20:]))
  monkeypatch.setattr(ids, "_FIRST_LOOK", 64)
  stream = readers.open_corpus(path)
  assert len([next(stream) for _ in range(63)]) == 63
  with pytest.raises(InputError, match=r"c\.jsonl:21: the id '7' stands in line 8 already"):
    next(stream)
  # Each look comes when there are twice as many.
  path = put(tmp_path, "c.jsonl", jsonl(*rows[:200], rows[7], *rows[200:]))
  stream = readers.open_corpus(path)
  assert len([next(stream) for _ in range(255)]) == 255
  with pytest.raises(InputError, match=r"c\.jsonl:201: the id '7' stands in line 8 already"):
    next(stream)
  # Ids that share a hash are no repetition.
  monkeypatch.setattr(ids, "hash", lambda id: 5, raising=False)
  monkeypatch.setattr(readers, "hash", lambda id: 5, raising=False)
  assert len(read(put(tmp_path, "c.jsonl", jsonl(*rows[:200])))) == 200


def test_memory_does_not_grow_with_the_file(tmp_path):
  text = "word " * 1000
  path = put(tmp_path, "c.jsonl", jsonl(*({"id": f"{n}", "text": text} for n in range(2000))))
  tracemalloc.start()
  try:
    for _ in readers.open_corpus(path, words=500):
      pass
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert peak < 2e6 < path.stat().st_size / 4


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40), st.integers(1, 12))
def test_cut(tokens, words):
  """Every word once, in order, and only the last block is short."""
  found = list(readers.cut([Passage("id", "T", " \n".join(tokens))], words))
  blocks = [passage.text.split(" ") for passage in found]
  assert [word for block in blocks for word in block] == tokens
  assert {len(block) for block in blocks[:-1]} <= {words}
  assert [(p.id, p.title) for p in found] == [(f"id-{n}", "T") for n in range(len(found))]
  filled = list(readers.cut([Passage("id", "T", " ".join(tokens))], words, fill=True))
  assert filled[:-1] == found[:-1]
  last = filled[-1].text.split(" ")
  assert last[: len(blocks[-1])] == blocks[-1]
  if len(blocks) > 1:
    assert last == (blocks[-1] + tokens)[:words]
  else:
    assert last == tokens  # there is nothing before it to fill it from


def test_cutting_a_corpus(tmp_path):
  rows = {"id": "a", "title": "T", "text": "1 2 3 4 5"}, {"id": "a-1", "text": "6"}
  path = put(tmp_path, "c.jsonl", jsonl(*rows))
  assert read(path, words=2) == [
    Passage("a-0", "T", "1 2"),
    Passage("a-1", "T", "3 4"),
    Passage("a-2", "T", "5"),
    Passage("a-1-0", "", "6"),
  ]
  assert read(path, words=2, fill=True)[2].text == "5 1"
  with pytest.raises(InputError, match="words: at least 1, not 0"):
    list(readers.cut([], 0))


@pytest.mark.parametrize(
  ("name", "count", "first"),
  [
    ("strategyqa/evidence/corpus.jsonl.gz", 17_645, "Julius Caesar-75"),
    ("corpora/openstax_anatomy.jsonl.gz", None, "anatomy/m45981/0"),
    ("openbookqa/crowdsourced-facts.txt", None, "crowdsourced-facts.txt:2"),
  ],
)
def test_real_files(shared_data, name, count, first):
  found = read(shared_data / name)
  assert found[0].id == first
  assert len(found) > 1000 if count is None else len(found) == count
