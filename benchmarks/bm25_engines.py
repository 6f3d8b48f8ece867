"""The engines of `bm25.py`, each in a process of its own, told what to do over a pipe.

`python bm25_engines.py ENGINE` reads a JSON object a line from standard input, such as
`{"do": "build", ...}`, and answers each with one on standard output: what the method of that name
returns, or `{"error": ...}`. It runs in whatever environment the engine is installed in, so that
nothing but NumPy and the engine is imported.
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import worker

K1, B = 0.9, 0.4


def resident(field: str = "VmHWM") -> int:
  """Bytes of memory of this process, from /proc; by default the most so far.

  The `ru_maxrss` of getrusage is no use: a process that was just started has that of its parent.
  """
  for line in Path("/proc/self/status").read_text().splitlines():
    if line.startswith(field + ":"):
      return int(line.split()[1]) * 1024
  return 0


def size(folder: str) -> int:
  """Bytes on disk."""
  return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def texts(parts: str | Path) -> Iterator[str]:
  """The texts of all parts, in order."""
  for path in sorted(Path(parts).iterdir()):
    with path.open("rb") as file:
      for line in file:
        yield json.loads(line)["text"]


class Engine:
  """What all have in common; `build`, `open` and `_search` are each engine's own."""

  queries: list[str]
  _k: int
  _threads: int

  def begin(self, *, search: bool) -> dict[str, Any]:
    """Imports what is needed to build or to search, before any clock runs."""
    raise NotImplementedError

  def first(self, *, folder: str, queries: list[str], k: int, threads: int) -> dict[str, Any]:
    """Opens an index and answers the first batch: seconds until the answer."""
    start = time.perf_counter()
    self.queries, self._k, self._threads = queries, k, threads
    self.open(folder)
    opened = time.perf_counter()
    self._search()
    return {"open_s": opened - start, "first_batch_s": time.perf_counter() - opened}

  def open(self, folder: str) -> None:
    """Opens an index and takes the queries that will be asked."""
    raise NotImplementedError

  def _search(self, *, threads: int | None = None, text: bool = False) -> tuple[Any, Any]:
    raise NotImplementedError

  def run(self, **options: Any) -> dict[str, Any]:
    """Answers all queries once: seconds by the clock, and by the processors that worked."""
    start, worked = time.perf_counter(), time.process_time()
    self._search(**options)
    return {
      "seconds": time.perf_counter() - start,
      "processor_s": time.process_time() - worked,
    }

  def results(self, *, path: str) -> dict[str, Any]:
    """Answers once more and stores positions and scores."""
    ids, scores = self._search()
    np.savez(path, ids=ids, scores=scores)
    return {}

  def memory(self) -> dict[str, Any]:
    """The most memory this process ever had, and what of it now is files'."""
    return {"peak_rss_bytes": resident(), "files_rss_bytes": resident("RssFile")}


class Ours(Engine):
  """`kard_jax.retrieval`."""

  def begin(self, *, search: bool) -> dict[str, Any]:
    """As `Engine`; compiles the kernels, once a machine."""
    del search
    from kard_jax.retrieval import bm25, index, native, passages, readers

    self._bm25, self._index, self._passages, self._readers = bm25, index, passages, readers
    native.library()  # compiled once a machine
    return {"threads": len(os.sched_getaffinity(0))}

  def build(self, *, parts: str, folder: str, threads: int, memory_limit: int) -> dict[str, Any]:
    """From JSONL to an index that can be searched."""
    start = time.perf_counter()
    built = self._index.build(
      self._readers.open_corpus(parts), folder, threads=threads, memory_limit=memory_limit
    )
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "postings": built.postings, "bytes": size(folder)}

  def store(self, *, parts: str, folder: str) -> dict[str, Any]:
    """Writes the passages themselves, to be read by number; the others do not."""
    start = time.perf_counter()
    self._passages.write(self._readers.open_corpus(parts), folder)
    return {"seconds": time.perf_counter() - start, "bytes": size(folder)}

  def open(self, folder: str) -> None:
    """As `Engine`."""
    self._opened = self._index.open(folder)

  def load(self) -> dict[str, Any]:
    """Terms of the queries that the index knows, and how many postings those have."""
    encoded = self._opened.encoder(self.queries)
    return {
      "terms_per_query": float(encoded.counts.sum()) / len(self.queries),
      "postings_per_query": float((encoded.counts * encoded.frequency).sum()) / len(self.queries),
    }

  def _search(self, *, threads: int | None = None, text: bool = False) -> tuple[Any, Any]:
    return self._bm25.top_k(self._opened, self.queries, self._k, threads=threads or self._threads)


class Bm25s(Engine):
  """bm25s with numba, at its best: see README.md."""

  def begin(self, *, search: bool) -> dict[str, Any]:
    """As `Engine`."""
    os.environ["DISABLE_TQDM"] = "1"
    import bm25s
    import numba
    import Stemmer

    self._bm25s, self._stemmer = bm25s, Stemmer.Stemmer("porter")
    if not search:
      gc.disable()  # its lists of lists cost the collector a tenth of the time
    return {"version": bm25s.__version__, "numba": numba.__version__}

  def _tokens(self, texts: list[str], ids: bool) -> Any:
    return self._bm25s.tokenize(
      texts, stopwords="en", stemmer=self._stemmer, return_ids=ids, show_progress=False
    )

  def build(self, *, parts: str, folder: str, threads: int, memory_limit: int) -> dict[str, Any]:
    """From JSONL to arrays in memory; saving them is not counted."""
    del threads, memory_limit  # it has neither
    made = self._bm25s.BM25(k1=K1, b=B, method="lucene", backend="numba")
    made.compile(warmup=True)  # each object compiles anew
    start = time.perf_counter()
    corpus = list(texts(parts))
    read = time.perf_counter()
    tokens = self._tokens(corpus, ids=True)
    tokenised = time.perf_counter()
    made.index(tokens, show_progress=False)
    end = time.perf_counter()
    peak = resident()  # a search could begin; what follows is for the other process
    made.save(folder, show_progress=False)
    return {
      "seconds": end - start,
      "read_s": read - start,
      "tokenise_s": tokenised - read,
      "index_s": end - tokenised,
      "save_s": time.perf_counter() - end,
      "postings": len(made.scores["data"]),
      "bytes": size(folder),
      "peak_rss_bytes": peak,
    }

  def open(self, folder: str) -> None:
    """As `Engine`."""
    self._opened = self._bm25s.BM25.load(folder, load_corpus=False, show_progress=False)
    known = self._opened.vocab_dict
    # Ids are the fastest thing it takes: strings and `Tokenized` are looked up first.
    self._ids = [
      [known[t] for t in row if t in known] for row in self._tokens(self.queries, ids=False)
    ]
    indptr = self._opened.scores["indptr"]
    self._touched = [int((indptr[np.array(row) + 1] - indptr[row]).sum()) for row in self._ids]

  def load(self) -> dict[str, Any]:
    """As `Ours`."""
    terms = sum(map(len, self._ids)) / len(self._ids)
    return {"terms_per_query": terms, "postings_per_query": sum(self._touched) / len(self._ids)}

  def _search(self, *, threads: int | None = None, text: bool = False) -> tuple[Any, Any]:
    found = self._opened.retrieve(
      self._tokens(self.queries, ids=False) if text else self._ids,
      k=self._k,
      show_progress=False,
      n_threads=threads or self._threads,
      backend_selection="numba",
    )
    return found.documents, found.scores


class Lucene(Engine):
  """Lucene by way of Anserini and Pyserini."""

  def begin(self, *, search: bool) -> dict[str, Any]:
    """As `Engine`; starts the virtual machine."""
    from pyserini.pyclass import autoclass  # starts the virtual machine

    self._java = autoclass
    if search:
      from pyserini.search.lucene import LuceneSearcher  # brings PyTorch, which costs memory

      self._searcher = LuceneSearcher
    return {"java": autoclass("java.lang.System").getProperty("java.version")}

  def build(self, *, parts: str, folder: str, threads: int, memory_limit: int) -> dict[str, Any]:
    """From JSONL to an index on disk, the virtual machine being warm."""
    del memory_limit  # the virtual machine has its own
    index = self._java("io.anserini.index.IndexCollection")
    common = ["-collection", "BeirFlatCollection", "-generator", "DefaultLuceneDocumentGenerator"]
    with tempfile.TemporaryDirectory(dir=Path(folder).parent) as warm:
      first, beside = min(Path(parts).iterdir()), Path(warm, "passages")
      beside.mkdir()
      os.link(first, beside / first.name)
      index.main([*common, "-input", str(beside), "-index", f"{warm}/index", "-threads", "1"])
    start = time.perf_counter()
    index.main([*common, "-input", parts, "-index", folder, "-threads", str(threads)])
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "bytes": size(folder)}

  def open(self, folder: str) -> None:
    """As `Engine`."""
    self._opened = self._searcher(folder)
    self._opened.set_bm25(K1, B)
    self._names = [str(number) for number in range(len(self.queries))]

  def _search(self, *, threads: int | None = None, text: bool = False) -> tuple[Any, Any]:
    threads = threads or self._threads
    return self._opened.batch_search(self.queries, self._names, self._k, threads), None

  def results(self, *, path: str) -> dict[str, Any]:
    """As `Engine`."""
    found, _ = self._search()
    ids = np.full((len(self.queries), self._k), -1, np.int64)
    scores = np.zeros(ids.shape)
    for row, name in enumerate(self._names):
      for column, hit in enumerate(found[name]):
        ids[row, column], scores[row, column] = int(hit.docid), hit.score
    np.savez(path, ids=ids, scores=scores)
    return {}


ENGINES = {"ours": Ours, "bm25s": Bm25s, "lucene": Lucene}


def _with_memory(answer: dict[str, Any]) -> dict[str, Any]:
  return {"peak_rss_bytes": resident()} | answer if "seconds" in answer else answer


if __name__ == "__main__":
  worker.serve(ENGINES, _with_memory)
