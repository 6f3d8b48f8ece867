"""Answering: retrieve, rerank, generate, vote (paper, section 3.3 and its inference setting).

Each step is a plain callable, so every baseline is an argument and none is a branch: without
`retrieve` this is reasoning distillation, without `rerank` KARD with BM25 alone, with a `retrieve`
that looks silver passages up it is the oracle, and with a `compose` that puts solved examples
before the question it is few-shot prompting.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from kard_jax.compose import Compose, Prompt, as_trained
from kard_jax.core import files
from kard_jax.core.files import InputError
from kard_jax.prompts import Prompts
from kard_jax.questions import Question
from kard_jax.retrieval.passages import Passage

T = TypeVar("T")

RECORDED = 10  # passages that a row names, if so many were found: what hit@10 needs


class Scored(NamedTuple):
  """A passage and what a retriever or reranker gave it; higher is better."""

  passage: Passage
  score: float


Retrieve = Callable[[Sequence[Question], int], Sequence[Sequence[Scored]]]
"""`retrieve(questions, k)`: for each question up to k passages, best first; a list may be empty."""

Rerank = Callable[[Sequence[Question], Sequence[Sequence[Scored]]], Sequence[Sequence[Scored]]]
"""`rerank(questions, candidates)`: for each question its candidates again, best first."""


class Written(NamedTuple):
  """A text that a student wrote.

  Attributes:
    text: a rationale and an answer.
    log_prob: of all its tokens and its end, natural, under the student itself; None: not known.
    tokens: how many these are.
  """

  text: str
  log_prob: float | None
  tokens: int


Generate = Callable[[Sequence[str], int], Sequence[Sequence[str | Written]]]
"""`generate(prompts, samples)`: for each prompt that many texts, in the order they were drawn."""


def answer(
  questions: Iterable[Question],
  *,
  prompts: Prompts,
  retrieve: Retrieve | None,
  rerank: Rerank | None,
  generate: Generate,
  compose: Compose | None = None,
  candidates: int = 100,
  passages: int = 1,
  samples: int = 5,
  batch: int = 64,
) -> Iterator[dict[str, Any]]:
  """Answers questions and yields one predictions row for each, in their order.

  `retrieve` and `rerank` have no default: leaving one out by mistake would measure another method.

  Args:
    questions: what to answer; read a batch at a time.
    prompts: the templates and the answer parser that the student was trained with.
    retrieve: finds passages; None answers without knowledge.
    rerank: puts the candidates in a better order; None keeps the retriever's.
    generate: the student.
    compose: writes the prompts; None takes those that students are trained with.
    candidates: how many passages the reranker sees (the paper's kappa*).
    passages: how many of the best stand in the prompt (the paper's k*); all of them where fewer
      were found, none where none was.
    samples: how many rationales are drawn for a question; their answers vote.
    batch: how many questions each callable is given at a time.

  Yields:
    `{"question_id", "passages": [ids in the prompt], "retrieved": [{"id", "score"}], "samples":
    [{"rationale", "answer", "log_prob", "tokens"}], "answer", "label", "seconds"}`. What was
    retrieved stands in the order that was used; an answer is the position of an option, or None
    where none is stated. `seconds` is a question's share of the time that its batch took. Where
    they are known, also `retrieved_before`, the retriever's own order (with a reranker);
    `prompt_tokens` that were read and `cut_tokens` that the limit took; `exemplars`, how many
    solved examples stood in the prompt; and a sample's `log_prob` and `tokens`.

  Raises:
    InputError: a number that cannot be meant, or a reranker without a retriever. At the call.
    ValueError: a callable returned another number of lists, or of samples, than it was asked for.
  """
  if rerank is not None and retrieve is None:
    raise InputError("a reranker needs candidates: give `retrieve` too, or leave `rerank` out")
  for name, value, least in (
    ("candidates", candidates, 1),
    ("passages", passages, 0),
    ("samples", samples, 1),
    ("batch", batch, 1),
  ):
    if value < least:
      raise InputError(f"answer: `{name}` is {value}; it must be {least} or more")
  if rerank is not None and passages > candidates:
    raise InputError(
      f"answer: {passages} passages for the prompt cannot come from {candidates} candidates; "
      "lower `passages` or raise `candidates`"
    )

  depth = max(passages, RECORDED)

  compose = compose or as_trained(prompts)

  def answer_batch(chunk: list[Question]) -> Iterator[dict[str, Any]]:
    started = time.perf_counter()
    rankings: Sequence[Sequence[Scored]] = [[]] * len(chunk)
    if retrieve is not None:
      rankings = _full(retrieve(chunk, candidates if rerank else depth), len(chunk), "retrieve")
    before = rankings
    if rerank is not None:
      rankings = _full(rerank(chunk, rankings), len(chunk), "rerank")
    shown = [[scored.passage for scored in ranking[:passages]] for ranking in rankings]
    composed: Sequence[Prompt] = _full(compose(chunk, shown), len(chunk), "compose")
    drawn = _full(generate([prompt.text for prompt in composed], samples), len(chunk), "generate")
    seconds = round((time.perf_counter() - started) / len(chunk), 4)
    for i, (q, outputs) in enumerate(zip(chunk, drawn, strict=True)):
      if len(outputs) != samples:
        raise ValueError(f"generate gave {len(outputs)} samples for question {q.id!r}: {samples=}")
      rows = [_sample(prompts, q, output) for output in outputs]
      yield {
        "question_id": q.id,
        "passages": [passage.id for passage in shown[i]],
        "retrieved": _listed(rankings[i], depth),
        **({"retrieved_before": _listed(before[i], depth)} if rerank is not None else {}),
        **_read(composed[i]),
        "samples": rows,
        "answer": vote([row["answer"] for row in rows]),
        "label": q.label,
        "seconds": seconds,
      }

  remaining = iter(questions)
  chunks = iter(lambda: list(itertools.islice(remaining, batch)), [])
  return itertools.chain.from_iterable(map(answer_batch, chunks))


def _listed(ranking: Sequence[Scored], depth: int) -> list[dict[str, Any]]:
  return [{"id": some.passage.id, "score": float(some.score)} for some in ranking[:depth]]


def _read(prompt: Prompt) -> dict[str, int]:
  counts = {"prompt_tokens": prompt.tokens, "cut_tokens": prompt.cut, "exemplars": prompt.exemplars}
  return {name: count for name, count in counts.items() if count is not None}


def _sample(prompts: Prompts, question: Question, output: str | Written) -> dict[str, Any]:
  text = output.text if isinstance(output, Written) else output
  parsed = prompts.parse(text, question.options)
  row: dict[str, Any] = {"rationale": parsed.rationale, "answer": parsed.answer}
  if isinstance(output, Written):
    known = {} if output.log_prob is None else {"log_prob": round(output.log_prob, 4)}
    row |= known | {"tokens": output.tokens}
  return row


def vote(answers: Sequence[int | None]) -> int | None:
  """The answer that most samples give; among equals the one sampled first.

  Args:
    answers: one for each sample, in the order they were drawn; None (unparsed) does not vote.

  Returns:
    the winner, or None if nobody voted.
  """
  counts = Counter(answer for answer in answers if answer is not None)
  return max(counts, key=counts.__getitem__, default=None)  # the first of the largest


def _full(lists: Sequence[T], wanted: int, name: str) -> Sequence[T]:
  if len(lists) != wanted:
    raise ValueError(f"{name} returned {len(lists)} lists for {wanted} questions")
  return lists


def read(path: files.PathLike, questions: Sequence[Question]) -> list[dict[str, Any]]:
  """Reads a file of the rows that `answer` yields, and checks them against their questions.

  Args:
    path: one method's predictions, JSON lines in any order.
    questions: what the method must have answered, each once and nothing else.

  Returns:
    the rows, in the order of `questions`.

  Raises:
    InputError: the file is missing; a row is broken, repeats a question, answers one that is not
      among `questions` or was made when it had another label; or a question has no row.
  """
  known = {q.id: q for q in questions}
  rows: dict[str, dict[str, Any]] = {}
  for line, row in files.read_jsonl(path):
    where = f"{path}:{line}"
    if not isinstance(row.get("question_id"), str):
      raise InputError(f'{where}: "question_id" must be a text, not {row.get("question_id")!r}')
    q = known.get(row["question_id"])
    if q is None:
      raise InputError(
        f"{where}: {row['question_id']!r} is none of the {len(known)} questions to be scored; "
        "score the split that was answered, or answer again"
      )
    if q.id in rows:
      raise InputError(f"{where}: a second prediction for question {q.id!r}; keep one")
    _check(row, q, where)
    rows[q.id] = row
  missing = [q.id for q in questions if q.id not in rows]
  if missing:
    some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    raise InputError(
      f"{path}: {len(missing)} of {len(questions)} questions have no prediction ({some}); "
      "methods are compared on the same questions, so answer them all"
    )
  return [rows[q.id] for q in questions]


def _check(row: Mapping[str, Any], q: Question, where: str) -> None:
  label = row.get("label")
  if isinstance(label, bool) or label != q.label:
    raise InputError(
      f"{where}: made when the label of {q.id!r} was {label!r}; it is {q.label}, so answer again"
    )
  shapes = {
    "passages": lambda item: isinstance(item, str),
    "retrieved": lambda item: isinstance(item, dict) and isinstance(item.get("id"), str),
    "samples": lambda item: isinstance(item, dict) and isinstance(item.get("rationale"), str),
  }
  for name, right in shapes.items():
    items = row.get(name)
    if not isinstance(items, list) or not all(map(right, items)):
      raise InputError(
        f'{where}: "{name}" is not a list as the answer stage writes it: {str(items)[:80]}'
      )
  for at in (row, *row["samples"]):
    option = at.get("answer", "missing")
    whole = isinstance(option, int) and not isinstance(option, bool)
    if option is not None and not (whole and 0 <= option < len(q.options)):
      raise InputError(
        f'{where}: "answer" must be null or the position of one of the {len(q.options)} options of '
        f"{q.id!r}, not {option!r}"
      )
