"""The BM25 index on disk: for each term, the passages that hold it and its score (section 3.2).

A passage's share of the score depends on the passage and the corpus, never on the query, so it is
computed at index time, in float64, and rounded once; a query then only adds float32 numbers. Terms
are sorted and passages stand in order within a term: the same passages give the same bytes. NumPy
only, so that an index can be built on a plain machine.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from kard_jax.core import files
from kard_jax.retrieval import passages as passages_lib
from kard_jax.retrieval import sealed, strings
from kard_jax.retrieval.analyzer import Analyzer

KIND = "kard_jax bm25 index"
VERSION = 1
REMEDY = "build the index again with launch/index.py"

_BATCH = 8192  # passages analysed and counted at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
  """A BM25 index, memory-mapped. `V` terms, `N` passages, `P` postings.

  Attributes:
    directory: where it lies.
    header: settings, counts, sizes and checksums.
    analyzer: turns a query into terms as it did the passages.
    terms: the V terms, sorted; a term's place is its id.
    offsets: int64 [V + 1], where each term's postings begin.
    passages: int32 [P], positions of passages, ascending within a term.
    scores: float32 [P], what the term adds to that passage's score, once per occurrence in a query.
  """

  directory: str
  header: dict[str, Any]
  analyzer: Analyzer
  terms: strings.Strings
  offsets: np.ndarray
  passages: np.ndarray
  scores: np.ndarray

  def __len__(self) -> int:
    """N, the number of passages."""
    return int(self.header["passages"])

  @property
  def corpus(self) -> str:
    """Hash of the passages that were indexed (`Passages.corpus`)."""
    return self.header["corpus"]

  def query(self, text: str) -> list[int]:
    """The ids of a query's known terms, ascending; one that occurs twice stands twice."""
    found = (self._find(term) for term in self.analyzer(text))
    return sorted(term for term in found if term is not None)

  @functools.cached_property
  def _find(self) -> Any:
    return functools.lru_cache(1 << 18)(self.terms.find)


def contents(passage: passages_lib.Passage) -> str:
  """The text of a passage that is indexed: title and text."""
  return f"{passage.title}\n{passage.text}" if passage.title else passage.text


def build(
  passages: Iterable[passages_lib.Passage],
  directory: files.PathLike,
  *,
  analyzer: Analyzer = Analyzer(),
  k1: float = 0.9,
  b: float = 0.4,
) -> Index:
  """Indexes passages, whole or not at all.

  The score of a term that occurs tf times in a passage of L terms is
  `log(1 + (N - df + 0.5) / (df + 0.5)) * tf / (tf + k1 * (1 - b + b * L / mean L))`: BM25 as Lucene
  has it since version 8, with exact lengths.

  Args:
    passages: the corpus in order; `Passages` or any iterable. Read once.
    directory: the folder to write; replaced if it exists. On a local disk.
    analyzer: text to terms.
    k1: how slowly repeated terms stop counting, at least 0.
    b: how much long passages are held back, 0 to 1.

  Returns:
    The index, opened.

  Raises:
    InputError: there are no passages, a setting is out of range, or `passages` no longer hash to
      what they did when they were written.
  """
  if not (math.isfinite(k1) and k1 >= 0):
    raise files.InputError(f"bm25: k1 has to be a number of at least 0, not {k1}")
  if not 0 <= b <= 1:
    raise files.InputError(f"bm25: b has to be between 0 and 1, not {b}")
  counted = _count(passages, analyzer)
  if not len(counted.lengths):
    raise files.InputError(f"{directory}: no passages to index")
  corpus = getattr(passages, "corpus", counted.corpus)
  if corpus != counted.corpus:
    raise files.InputError(
      f"{getattr(passages, 'directory', 'passages')}: the passages changed after they were written;"
      f" {passages_lib.REMEDY}"
    )
  with files.atomic(sealed.local(directory)) as temporary:
    folder = sealed.local(temporary)
    folder.mkdir()
    strings.save(folder, "terms", counted.terms, in_order=True)
    offsets_and_more = _postings(counted, k1, b)
    for name, value in zip(("offsets", "passages", "scores"), offsets_and_more, strict=True):
      np.save(folder / f"{name}.npy", value)
    fields = {
      "analyzer": analyzer.to_json(),
      "fields": ["title", "text"],
      "k1": k1,
      "b": b,
      "lengths": "exact",
      "passages": len(counted.lengths),
      "terms": len(counted.terms),
      "postings": len(offsets_and_more[1]),
      "mean_length": float(np.mean(counted.lengths)),
      "corpus": counted.corpus,
    }
    sealed.seal(folder, KIND, VERSION, fields)
  return open(directory)


def open(directory: files.PathLike, *, verify: bool = False) -> Index:
  """Opens an index, memory-mapped: nothing is read until a query needs it.

  Args:
    directory: what `build` wrote.
    verify: also compare the SHA-256 of every file, which reads all of them once. Stages do this.

  Raises:
    InputError: a file is missing, cut short or changed, or the format version is another. The
      message names the file.
  """
  folder = sealed.local(directory)
  header = sealed.check(folder, KIND, VERSION, remedy=REMEDY, verify=verify)
  index = Index(
    directory=str(folder),
    header=header,
    analyzer=Analyzer.from_json(header["analyzer"]),
    terms=strings.load(folder, "terms", in_order=True, remedy=REMEDY),
    offsets=sealed.array(folder, "offsets", np.int64, remedy=REMEDY),
    passages=sealed.array(folder, "passages", np.int32, remedy=REMEDY),
    scores=sealed.array(folder, "scores", np.float32, remedy=REMEDY),
  )
  terms, postings = header["terms"], header["postings"]
  found = len(index.terms), len(index.offsets), len(index.passages), len(index.scores)
  if found != (terms, terms + 1, postings, postings):
    raise files.InputError(f"{folder}: its arrays do not fit one another; {REMEDY}")
  return index


def check_corpus(index: Index, passages: passages_lib.Passages) -> None:
  """Makes sure that positions of the index mean these passages.

  Raises:
    InputError: the index was built from others.
  """
  if index.corpus != passages.corpus:
    raise files.InputError(
      f"{index.directory}: built from other passages ({len(index)}) than those in"
      f" {passages.directory} ({len(passages)}); {REMEDY}"
    )


@dataclasses.dataclass(frozen=True)
class _Counted:
  """What one pass over the corpus leaves: term counts in batches, in passage order."""

  terms: list[str]  # sorted
  batches: list[tuple[np.ndarray, np.ndarray, np.ndarray]]  # term, passage, count; by term
  lengths: np.ndarray  # int32 [N]
  corpus: str


def _count(passages: Iterable[passages_lib.Passage], analyzer: Analyzer) -> _Counted:
  # Unseen terms are numbered as they come; the numbers are replaced by sorted places at the end.
  numbers: collections.defaultdict[str, int] = collections.defaultdict()
  numbers.default_factory = numbers.__len__
  corpus = passages_lib.CorpusHash()
  batches, lengths, start = [], [np.zeros(0, np.int32)], 0
  for batch in _batched(passages, _BATCH):
    for passage in batch:
      corpus.add(passage)
    analyzed = analyzer.batch(contents(passage) for passage in batch)
    lengths.append(np.array([len(terms) for terms in analyzed], np.int32))
    total = int(lengths[-1].sum())
    flat = map(numbers.__getitem__, itertools.chain.from_iterable(analyzed))
    term = np.fromiter(flat, np.int64, total)
    passage_in_batch = np.repeat(np.arange(len(batch)), lengths[-1])
    key, count = np.unique(term * _BATCH + passage_in_batch, return_counts=True)
    position = (start + key % _BATCH).astype(np.int32)
    batches.append(((key // _BATCH).astype(np.int32), position, count.astype(np.int32)))
    start += len(batch)
  terms = sorted(numbers)
  place = np.empty(len(terms), np.int32)
  place[[numbers[term] for term in terms]] = np.arange(len(terms), dtype=np.int32)
  batches = [(place[term], position, count) for term, position, count in batches]
  return _Counted(terms, batches, np.concatenate(lengths), corpus.hexdigest())


def _postings(counted: _Counted, k1: float, b: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """offsets [V + 1], passages [P], scores [P]."""
  df = np.zeros(len(counted.terms), np.int64)
  for term, _, _ in counted.batches:
    first, counts = _runs(term)
    df[term[first]] += counts
  offsets = np.zeros(len(df) + 1, np.int64)
  np.cumsum(df, out=offsets[1:])
  size = len(counted.lengths)
  idf = np.log1p((size - df + 0.5) / (df + 0.5))
  mean = counted.lengths.mean() or 1.0  # a corpus of stop words alone
  held_back = k1 * (1 - b + b * counted.lengths / mean)
  positions, scores = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.float32)
  free = offsets[:-1].copy()  # where the next posting of each term goes
  for term, position, count in counted.batches:
    first, counts = _runs(term)
    rank = np.arange(len(term)) - np.repeat(first, counts)
    to = free[term] + rank
    positions[to] = position
    scores[to] = idf[term] * count / (count + held_back[position])
    free[term[first]] += counts
  return offsets, positions, scores


def _runs(term: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Where the postings of each term begin in a batch, where they stand together; how many."""
  first = np.flatnonzero(np.diff(term, prepend=-1))
  return first, np.diff(first, append=len(term))


def _batched(
  items: Iterable[passages_lib.Passage], size: int
) -> Iterator[Sequence[passages_lib.Passage]]:
  iterator = iter(items)
  while batch := list(itertools.islice(iterator, size)):
    yield batch
