"""The Batch API, the slow and cheap way to ask: write requests, submit them, collect what came.

Each step can be repeated and goes on where it was: what was written is not written again, what was
submitted is not submitted again, and results go to the journal that asking one by one fills too.
"""

from __future__ import annotations

import asyncio
import collections
import io
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import openai

from kard_jax.completions import Ask, Piece, Record, digest
from kard_jax.core import files
from kard_jax.core.files import InputError
from kard_jax.core.journal import Journal
from kard_jax.endpoint import Answer, Client, Endpoint, read_choices, usage

MOST_REQUESTS, MOST_BYTES = 50_000, 190_000_000  # of a file; the API's limits are 50,000 and 200 MB
_ENDED = ("completed", "expired", "cancelled", "failed")


class Report(NamedTuple):
  """What was collected.

  Attributes:
    collected: completions that are new in the journal.
    open: batches that have not ended, by status.
    errors: requests that brought none, by what the API says; they can be written again.
  """

  collected: int
  open: dict[str, int]
  errors: dict[str, int]


class Batches:
  """The files of a batch run, in one folder: `requests-00001.jsonl`, ... and `batches.jsonl`.

  Args:
    folder: local.
    endpoint: who is asked.
    asks: all that is wanted.
    journal: path of the journal of completions.
  """

  def __init__(
    self, folder: files.PathLike, endpoint: Endpoint, asks: Sequence[Ask], journal: files.PathLike
  ):
    self.folder = pathlib.Path(folder)
    self._endpoint = endpoint
    self._asks = asks
    self._journal = journal

  def pending(self) -> list[str]:
    """The files that were submitted and not collected."""
    states = self._states().items()
    return [name for name, row in states if "batch" in row and "collected" not in row]

  def write(self) -> list[pathlib.Path]:
    """Writes the requests for all that is missing; returns the files that wait to be submitted.

    Raises:
      InputError: results of an earlier file have not been collected: what they bring would be asked
        twice.
    """
    if waiting := self._waiting():
      return waiting  # whole, for a file takes its name last
    if pending := self.pending():
      raise InputError(
        f"{self.folder / pending[0]}: is submitted and not collected; BATCH = 'collect' first"
      )
    with Record(self._journal, self._endpoint.identity, self._asks) as record:
      pieces = record.missing(at_once=self._endpoint.at_once)
    made = []
    first = len(self._request_files()) + 1
    for number, lines in enumerate(_files_of(map(self._request, pieces)), first):
      path = self.folder / f"requests-{number:05d}.jsonl"
      with files.atomic(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
      made.append(path)
    return made

  def submit(self) -> int:
    """Uploads what is written and begins a batch of each file; returns how many are new.

    A kill between a batch and the note of it makes no second one: the batch carries the hash of its
    file, and is found by it.

    Raises:
      InputError: the endpoint refuses; or a request's completions came otherwise in the meantime.
    """
    waiting = self._waiting()
    if not waiting:
      return 0
    with Record(self._journal, self._endpoint.identity, self._asks) as record:
      pieces = record.missing(at_once=False)
      missing = {(digest(piece.ask.id), str(piece.samples[0])) for piece in pieces}
    for path in waiting:
      for number, row in files.read_jsonl(path):
        id, sample, _ = str(row.get("custom_id")).rsplit("-", 2)
        if (id, sample) not in missing:
          raise InputError(
            f"{path}:{number}: was answered since, or is not asked any more; delete the file, and "
            "BATCH = 'write' again"
          )
    return asyncio.run(self._with_client(self._submit, waiting))

  def collect(self) -> Report:
    """Takes over the results of batches that have ended, matched by their `custom_id`.

    Besides, those of any `results*.jsonl` put into the folder, as the API's web page gives them.

    Raises:
      InputError: nothing was submitted; or a result is of no question that is asked about.
    """
    states = self._states()
    local = sorted(self.folder.glob("results*.jsonl"))
    if not states and not local:
      raise InputError(f"{self.folder}: nothing to collect; BATCH = 'submit' first")
    with Record(self._journal, self._endpoint.identity, self._asks) as record:
      taking = _Taking(record)
      for path in local:
        taking.lines(path.read_text(encoding="utf-8"), str(path))
      pending = {name: states[name] for name in self.pending()}
      still: dict[str, int] = {}
      if pending:
        still = asyncio.run(self._with_client(self._collect, pending, taking))
      return Report(taking.collected, still, dict(taking.errors.most_common()))

  def _request(self, piece: Piece) -> str:
    body: dict[str, Any] = {
      "model": self._endpoint.model,
      "messages": [{"role": "user", "content": piece.ask.prompt}],
      **self._endpoint.options,
    }
    if len(piece.samples) > 1:
      body["n"] = len(piece.samples)
    row = {"custom_id": _custom_id(piece), "method": "POST", "url": "/v1/chat/completions"}
    return files.to_line(row | {"body": body})

  def _waiting(self) -> list[pathlib.Path]:
    states = self._states()
    return [path for path in self._request_files() if "batch" not in states.get(path.name, {})]

  def _request_files(self) -> list[pathlib.Path]:
    return sorted(self.folder.glob("requests-*.jsonl"))

  def _states(self) -> dict[str, dict[str, Any]]:
    """What is known of each submitted file, by its name."""
    path = self.folder / "batches.jsonl"
    states: dict[str, dict[str, Any]] = {}
    if path.exists():
      with Journal(path) as journal:
        for row in journal.rows:
          states.setdefault(str(row.get("file")), {}).update(row)
    return states

  def _note(self, row: Mapping[str, Any]) -> None:
    with Journal(self.folder / "batches.jsonl") as journal:
      journal.append(row)

  async def _with_client(self, work: Any, *arguments: Any) -> Any:
    async with Client(self._endpoint) as client:
      try:
        return await work(client.api, *arguments)
      except openai.APIError as error:
        raise InputError(
          f"{self._endpoint.base_url}: the Batch API refuses ({client.clean(str(error))}); run "
          "again to go on"
        ) from None

  async def _submit(self, api: openai.AsyncOpenAI, waiting: Sequence[pathlib.Path]) -> int:
    known: dict[str, str] = {}
    states = self._states()
    if any(path.name in states for path in waiting):  # a kill came in between
      async for batch in api.batches.list(limit=100):
        tag = (batch.metadata or {}).get("kard_requests")
        if tag is not None and batch.status not in ("failed", "expired", "cancelled"):
          known.setdefault(tag, batch.id)
    for path in waiting:
      content = path.read_bytes()
      tag = digest(path.name + content.decode())
      id = known.get(tag)
      if id is None:
        uploaded = await api.files.create(file=(path.name, io.BytesIO(content)), purpose="batch")
        self._note({"file": path.name, "uploaded": uploaded.id})
        begun = await api.batches.create(
          input_file_id=uploaded.id,
          endpoint="/v1/chat/completions",
          completion_window="24h",
          metadata={"kard_requests": tag},
        )
        id = begun.id
      self._note({"file": path.name, "batch": id})
    return len(waiting)

  async def _collect(
    self, api: openai.AsyncOpenAI, pending: Mapping[str, Mapping[str, Any]], taking: _Taking
  ) -> dict[str, int]:
    still: collections.Counter[str] = collections.Counter()
    for name, row in pending.items():
      batch = await api.batches.retrieve(str(row["batch"]))
      if batch.status not in _ENDED:
        still[batch.status] += 1
        continue
      for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
        content = await api.files.content(file_id)
        taking.lines(content.text, f"{row['batch']}/{file_id}")
      for problem in (batch.errors and batch.errors.data) or []:
        taking.errors[f"{name}: {problem.message or problem.code}"] += 1
      taking.record.sync()
      self._note({"file": name, "collected": batch.status})
    return dict(still)


class _Taking:
  """Takes results over into the journal; what is there already is passed over."""

  def __init__(self, record: Record):
    self.record = record
    self.collected = 0
    self.errors: collections.Counter[str] = collections.Counter()
    missing = record.missing(at_once=False)
    self._missing = {(digest(piece.ask.id), piece.samples[0]): piece.ask for piece in missing}
    self._known = {digest(id) for id in record.ids}

  def lines(self, text: str, where: str) -> None:
    """The rows of an output or error file."""
    for number, line in enumerate(text.split("\n"), 1):
      if line.strip():
        try:
          self._line(json.loads(line), f"{where}:{number}")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
          if isinstance(error, InputError):
            raise
          self.errors[f"a row that makes no sense ({type(error).__name__}: {error})"] += 1

  def _line(self, row: Mapping[str, Any], where: str) -> None:
    id, first, count = str(row["custom_id"]).rsplit("-", 2)
    if id not in self._known:
      raise InputError(
        f"{where}: of a question that is not asked about; the folder is of another run"
      )
    response = row.get("response") or {}
    if row.get("error") or response.get("status_code") != 200:
      said = row.get("error") or (response.get("body") or {}).get("error") or {}
      status = response.get("status_code")
      self.errors[f"{status or said.get('code')}: {str(said.get('message'))[:200]}"] += 1
      return
    samples = range(int(first), int(first) + int(count))
    wanted = [sample for sample in samples if (id, sample) in self._missing]
    if not wanted:
      return  # collected before a kill
    ask = self._missing[id, wanted[0]]
    completions = read_choices(response["body"])[: len(wanted)]
    tokens = usage(response["body"], ask.prompt, completions)
    self.record.add(Piece(ask, tuple(wanted)), Answer(completions, *tokens))
    for sample in wanted[: len(completions)]:
      del self._missing[id, sample]
    self.collected += len(completions)


def _custom_id(piece: Piece) -> str:
  """Names a request so that its samples are known from it: they follow one another."""
  return f"{digest(piece.ask.id)}-{piece.samples[0]}-{len(piece.samples)}"


def _files_of(lines: Iterator[str]) -> Iterator[list[str]]:
  """Groups lines into files within the API's limits."""
  group: list[str] = []
  size = 0
  for line in lines:
    length = len(line.encode())
    if group and (len(group) == MOST_REQUESTS or size + length > MOST_BYTES):
      yield group
      group, size = [], 0
    group.append(line)
    size += length
  if group:
    yield group
