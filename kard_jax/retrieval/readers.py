"""Readers: files of passages in the formats that people have them in, as a stream of `Passage`.

A format is told by its name, or by the file's name and first line:

- `jsonl`: `{"id", "title", "text"}`, a JSON object a line; the title may be left out, `_id` may
  stand for `id`, other fields are passed over. BEIR's `corpus.jsonl` is of this kind (`beir`).
- `dpr`: DPR's `psgs_w100.tsv`, the columns id, text and title under a line that names them.
- `paragraphs`: plain text, paragraphs between blank lines. `lines`: a passage a line. `text`: the
  one or the other; paragraphs if a blank line stands between two others in the first MiB.

Everything streams: of the passages that went by, only eight bytes each are kept, to notice an id
that comes twice. A name that ends in `.gz` is read through gzip.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, cast

from etils import epath

from kard_jax.core import files
from kard_jax.core.files import InputError
from kard_jax.retrieval import ids
from kard_jax.retrieval.record import Passage, validate

Located = tuple[str, int, Passage]  # file, line (from 1), what stands there

_ENDINGS = {".jsonl": "jsonl", ".tsv": "dpr", ".txt": "text"}
_DPR_COLUMNS = ("id", "text", "title")
_LOOK = 1 << 20  # bytes in which `text` looks for a blank line
_BUFFER = 1 << 18


def open_corpus(
  source: files.PathLike,
  *,
  format: str | None = None,
  words: int | None = None,
  fill: bool = False,
) -> Iterator[Passage]:
  """The passages of a file, or of all files in a folder and its folders, by their sorted names.

  Args:
    source: a file; a folder of `.txt` files, or of `.jsonl` or `.tsv` ones; or a BEIR dataset's
      folder, of which `corpus.jsonl` is read.
    format: one of `FORMATS`; by default it is told from the names and the first line.
    words: cut into passages of so many words (`cut`); by default they stay as they are.
    fill: as in `cut`.

  Returns:
    An iterator; files are read as it goes.

  Raises:
    InputError: at once, if there is no such file or its format is unknown. While reading, with file
      and line: a row that is not of the format; a field missing, empty, of a wrong type or no valid
      Unicode; an id that stood in another place already; no passage at all.
  """
  if format is not None and format not in FORMATS:
    raise InputError(f"format: one of {', '.join(FORMATS)}, not {format!r}")
  if words is not None and words < 1:
    raise InputError(f"words: at least 1, not {words}")
  named = list(_files(source, format))
  passages = _once(str(source), lambda: _located(named))
  return passages if words is None else cut(passages, words, fill=fill)


def cut(passages: Iterable[Passage], words: int = 100, *, fill: bool = False) -> Iterator[Passage]:
  """Cuts passages into disjoint blocks of words, as DPR did with Wikipedia's articles.

  A word is what stands between white space; the words of a block are joined by single spaces. The
  last block has what is left. (DPR's own file fills it up to 100 words with the beginning of the
  article again; `fill` does so too. Its articles begin with their title, which here stands in
  its own field.)

  Args:
    passages: articles, or any texts. A block keeps the title and has the id `<id>-<block>`, with
      blocks counted from 0; also where there is only one.
    words: in a block, at least 1.
    fill: add words of the blocks before to a last block that is short, from the first word on.
  """
  if words < 1:
    raise InputError(f"words: at least 1, not {words}")
  for passage in passages:
    every = passage.text.split()
    for number, first in enumerate(range(0, len(every), words)):
      block = every[first : first + words]
      if fill and len(block) < words:
        block += every[: min(words - len(block), first)]
      yield Passage(f"{passage.id}-{number}", passage.title, " ".join(block))


def _once(source: str, located: Callable[[], Iterator[Located]]) -> Iterator[Passage]:
  """Passes passages on, and notices an id that comes twice.

  Only hashes are kept, so the files are read a second time to say where the two stand.
  """

  def explain(hashes: set[int]) -> None:
    seen: dict[str, tuple[str, int]] = {}
    for path, line, passage in located():
      if hash(passage.id) not in hashes:
        continue
      if passage.id in seen:
        before, at = seen[passage.id]
        where = f"line {at}" if before == path else f"{before}:{at}"
        raise InputError(f"{path}:{line}: the id {passage.id!r} stands in {where} already")
      seen[passage.id] = path, line

  once = ids.Once(explain)
  for _, _, passage in located():
    once.add(passage.id)
    yield passage
  if not len(once):
    raise InputError(f"{source}: no passages in it")
  once.look()


def _files(source: files.PathLike, format: str | None) -> Iterator[tuple[epath.Path, str, str]]:
  """Each file, its name in the corpus, and its format."""
  if str(source).startswith("tfds:"):
    raise InputError(f"{source}: launch/index.py and tasks.wikipedia.read take it, not this reader")
  place = epath.Path(source)
  if not place.exists():
    raise InputError(f"{source}: no such file or folder")
  if not place.is_dir():
    yield place, _plain(place.name), format or _format(place)
    return
  for name in ("corpus.jsonl", "corpus.jsonl.gz"):
    if format in (None, "beir") and (place / name).exists():
      yield place / name, name, "beir"
      return
  names = sorted(
    name for name in files.names_below(place) if not any(p.startswith(".") for p in name.split("/"))
  )
  if format is None:
    kinds = {ending for name in names if (ending := _ending(name)) in _ENDINGS}
    if len(kinds) != 1:
      found = f"files in {' and '.join(sorted(kinds))}" if kinds else "no .txt, .jsonl or .tsv file"
      raise InputError(f"{source}: {found}; name a file, or give a format: {', '.join(FORMATS)}")
    names = [name for name in names if _ending(name) in kinds]
    format = _ENDINGS[kinds.pop()]
  if not names:
    raise InputError(f"{source}: no files in this folder")
  for name in names:
    yield place / name, _plain(name), format


def _format(path: epath.Path) -> str:
  """The format of a file, by its name or its first line."""
  known = _ENDINGS.get(_ending(path.name))
  if known is not None:
    return known
  first = next((line.strip() for _, line in _lines(path) if line.strip()), "")
  if first.startswith("{"):
    return "jsonl"
  if set(_DPR_COLUMNS) <= set(first.split("\t")):
    return "dpr"
  raise InputError(f"{path}:1: of what format? Give one of {', '.join(FORMATS)}")


def _located(named: Iterable[tuple[epath.Path, str, str]]) -> Iterator[Located]:
  return itertools.chain.from_iterable(FORMATS[kind](path, name) for path, name, kind in named)


def _jsonl(path: epath.Path, name: str) -> Iterator[Located]:
  del name
  for line, text in _lines(path):
    if text.isspace():
      continue
    try:
      row = json.loads(text)
    except (ValueError, RecursionError) as error:
      raise InputError(f"{path}:{line}: not JSON ({error})") from None
    if not isinstance(row, dict):
      raise InputError(f"{path}:{line}: a JSON object is needed, this is {text[:40]!r}")
    yield str(path), line, _of_row(row, f"{path}:{line}")


def _of_row(row: dict[str, Any], where: str) -> Passage:
  key = "id" if "id" in row else "_id"
  if key not in row:
    raise InputError(f"{where}: the field 'id' is missing (or '_id')")
  if "text" not in row:
    raise InputError(f"{where}: the field 'text' is missing")
  id, title, text = row[key], row.get("title"), row["text"]
  if title is None:
    title = ""
  if text == "" and key == "_id":
    title, text = "", title  # some of BEIR's documents have a title only: that is what they say
  validate(id, title, text, where)
  return Passage(id, title, text)


def _dpr(path: epath.Path, name: str) -> Iterator[Located]:
  del name
  lines = _lines(path)
  header = next(lines, (1, ""))[1].strip().split("\t")
  if not set(_DPR_COLUMNS) <= set(header):
    needed = "<TAB>".join(_DPR_COLUMNS)
    raise InputError(f"{path}:1: the first line has to name the columns: {needed}")
  id, text, title = (header.index(column) for column in _DPR_COLUMNS)
  # Quotes may hold line ends, so a row begins where the one before it ended.
  last = 1

  def texts() -> Iterator[str]:
    nonlocal last
    for last, line in lines:  # noqa: B007
      yield line

  rows, first = csv.reader(texts(), delimiter="\t"), 2
  while True:
    try:
      row = next(rows)
    except StopIteration:
      return
    except csv.Error as error:
      raise InputError(
        f"{path}:{first}: not a row of tab-separated values ({error}); is a quote left open?"
      ) from None
    where = f"{path}:{first}"
    if row:
      if len(row) != len(header):
        raise InputError(f"{where}: {len(row)} columns, not {len(header)}; is a quote left open?")
      validate(row[id], row[title], row[text], where)
      yield str(path), first, Passage(row[id], row[title], row[text])
    first = last + 1


def _by_line(path: epath.Path, name: str) -> Iterator[Located]:
  for line, text in _lines(path):
    if text := text.strip():
      yield str(path), line, _plain_passage(path, name, line, text)


def _by_paragraph(path: epath.Path, name: str) -> Iterator[Located]:
  first, paragraph = 0, list[str]()
  for line, text in itertools.chain(_lines(path), [(0, "")]):
    if text := text.strip():
      first = first if paragraph else line
      paragraph.append(text)
    elif paragraph:
      yield str(path), first, _plain_passage(path, name, first, " ".join(paragraph))
      paragraph = []


def _by_either(path: epath.Path, name: str) -> Iterator[Located]:
  """Paragraphs where blank lines part them, else lines."""
  seen = blank = False
  size = 0
  for _, text in _lines(path):
    size += len(text)
    if text.isspace():
      blank = seen
    elif blank:
      return _by_paragraph(path, name)
    else:
      seen = True
    if size > _LOOK:
      break
  return _by_line(path, name)


def _plain_passage(path: epath.Path, name: str, line: int, text: str) -> Passage:
  validate(name, "", text, f"{path}:{line}")
  return Passage(f"{name}:{line}", "", text)


FORMATS: dict[str, Callable[[epath.Path, str], Iterator[Located]]] = {
  "jsonl": _jsonl,
  "beir": _jsonl,
  "dpr": _dpr,
  "text": _by_either,
  "paragraphs": _by_paragraph,
  "lines": _by_line,
}


def _lines(path: epath.Path) -> Iterator[tuple[int, str]]:
  """`(number, line)` of a UTF-8 file, numbers from 1, line ends kept."""
  with path.open("rb") as raw:
    binary: IO[bytes] = raw
    if path.name.endswith(".gz"):
      unpacked = gzip.GzipFile(fileobj=cast(Any, raw))
      binary = io.BufferedReader(cast(Any, unpacked), _BUFFER)
    number = 0
    try:
      for number, encoded in enumerate(binary, 1):
        if number == 1:
          encoded = encoded.removeprefix(b"\xef\xbb\xbf")  # a byte-order mark, as Windows has it
        yield number, encoded.decode()
    except UnicodeDecodeError as error:
      raise InputError(f"{path}:{number}: not UTF-8 ({error})") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
      raise InputError(f"{path}: not a whole gzip file ({error})") from None


def _plain(name: str) -> str:
  return name.removesuffix(".gz")


def _ending(name: str) -> str:
  name = _plain(name)
  return name[name.rfind(".") :] if "." in name else ""
