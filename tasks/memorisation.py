"""The memorisation experiment's worlds: one fact a place, and questions whose answer is that fact.

Names, relations and wordings are the closed world's. A world has a fact for each of its names,
and its knowledge base a passage for each fact; students are asked about the first N of
them, so that the others are the passages nobody asks for (the theory's R). Each value is drawn
uniformly from eight: a fact is three bits that nothing else tells.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from etils import epath
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from kard_jax.core import files
from kard_jax.prompts import Prompts
from kard_jax.questions import Question
from kard_jax.retrieval.passages import Passage
from tasks import vocabularies
from tasks.closed_world import Fact, World, passage_id
from tasks.closed_world_words import RELATIONS, SYLLABLES, Relation
from tasks.examples import Pick, StudentExamples
from tasks.vocabularies import Vocabulary

# The options of a relation are the same eight in the same order, so a prompt need not list them.
PROMPTS = Prompts(
  question="{question}", query="{question}", knowledge="\n{passages}", answer="Answer {letter}"
)
TARGET_LENGTH = 3  # "Answer", the letter, the end

_SPECIAL = ("<pad>", "</s>", "<unk>")  # in the order of T5's ids


@dataclasses.dataclass(frozen=True)
class Facts:
  """All facts of a world; the same arguments make the same on every machine.

  Attributes:
    seed: of everything that is drawn.
    relations: how many of the closed world's relations facts are of: fewer need fewer words, and so
      a smaller table of embeddings, in which no fact can be stored.
    size: how many facts, at most as there are names; the theory's N + R.
  """

  seed: int = 0
  relations: int = 4
  size: int = 4096

  def __post_init__(self) -> None:
    names = math.prod(map(len, SYLLABLES))
    if not 1 <= self.size <= names:
      raise files.InputError(f"WORLD_SIZE = {self.size}: from 1 to {names} facts; so many names")
    if not 1 <= self.relations <= len(RELATIONS):
      raise files.InputError(f"RELATIONS = {self.relations}: from 1 to {len(RELATIONS)}")

  @functools.cached_property
  def all(self) -> list[Fact]:
    """A fact a name, in an order that means nothing: any first N are a fair sample."""
    draw = World(self.seed).draws("memorisation")
    names = ["".join(parts) for parts in itertools.product(*SYLLABLES)]
    draw.shuffle(names)
    facts = []
    for name in names[: self.size]:
      relation = draw.choice(RELATIONS[: self.relations])
      value = draw.choice(relation.values)
      statement = draw.choice(relation.passages).format(name=name, word=value.word)
      facts.append(Fact(name, relation, value, statement))
    return facts

  def passages(self) -> Iterator[Passage]:
    """The knowledge base: a passage a fact."""
    for fact in self.all:
      yield Passage(id=passage_id(fact.place, fact.relation), title="", text=fact.statement)

  def questions(self) -> list[Question]:
    """A question of each fact in each wording; one wording of each fact, drawn, is held out.

    So what is asked in the end was never read in training, though fact and wording were.
    """
    draw = World(self.seed).draws("memorisation questions")
    asked = []
    for number, fact in enumerate(self.all):
      options = options_of(fact.relation)
      held_out = draw.randrange(len(fact.relation.questions))
      for wording, text in enumerate(fact.relation.questions):
        asked.append(
          Question(
            id=f"{number}-{wording}",
            question=text.format(name=fact.place),
            options=options,
            label=options.index(fact.value.option),
            gold=(passage_id(fact.place, fact.relation),),
            extra={"fact": number, "held_out": wording == held_out},
          )
        )
    return asked


def options_of(relation: Relation) -> tuple[str, ...]:
  """The options of every question about a relation."""
  return tuple(sorted(value.option for value in relation.values))


def write_vocabulary(folder: files.PathLike, relations: int) -> int:
  """Writes a vocabulary of whole words, with names in their three syllables; gives its size."""
  first, middle, last = ("|".join(column) for column in SYLLABLES)
  parts = rf"\b(?:{first})(?=(?:{middle})(?:{last})\b)|(?:{middle})(?=(?:{last})\b)"
  words = pre_tokenizers.Sequence(
    [pre_tokenizers.Split(Regex(parts), "isolated"), pre_tokenizers.Whitespace()]
  )
  found = {word for text in _texts(relations) for word, _ in words.pre_tokenize_str(text)}
  vocab = {word: id for id, word in enumerate([*_SPECIAL, *sorted(found)])}
  tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
  tokenizer.pre_tokenizer = words
  place = epath.Path(folder)
  place.mkdir(parents=True, exist_ok=True)
  (place / "tokenizer.json").write_text(tokenizer.to_str())
  kinds = dict(zip(("pad_token", "eos_token", "unk_token"), _SPECIAL, strict=True))
  files.write_json(place / "tokenizer_config.json", kinds)
  return len(vocab)


def _texts(relations: int) -> Iterator[str]:
  """Every word that is read or written."""
  names = ["".join(parts) for parts in zip(*SYLLABLES, strict=True)]
  yield " ".join(names)
  for relation in RELATIONS[:relations]:
    for label, value in enumerate(relation.values):
      yield PROMPTS.answer.format(letter="ABCDEFGH"[label])
      for wording in relation.passages:
        yield wording.format(name=names[0], word=value.word)
    for wording in relation.questions:
      yield wording.format(name=names[0])


@dataclasses.dataclass(frozen=True)
class Examples:
  """Questions as rows, all of one length.

  Attributes:
    ids: of the questions.
    rows: T5X's features [N, ...].
  """

  ids: Sequence[str]
  rows: Mapping[str, np.ndarray]

  @classmethod
  def make(
    cls,
    questions: Sequence[Question],
    passages: Sequence[Sequence[Passage]],
    vocabulary: Vocabulary,
    input_length: int,
  ) -> Examples:
    """Rows of questions, each with its passages (none: without knowledge)."""
    inputs = [PROMPTS.student_input(*pair) for pair in zip(questions, passages, strict=True)]
    targets = [PROMPTS.student_target(question, None) for question in questions]
    ids = [question.id for question in questions]
    examples = StudentExamples(
      ids,
      vocabularies.tokens(vocabulary, inputs),
      vocabularies.tokens(vocabulary, targets),
      (len(ids),),
      vocabulary.eos_id,
    )
    lengths = {"inputs": input_length, "targets": TARGET_LENGTH}
    if cut := sum(examples.trimmed(lengths).values()):
      raise files.InputError(
        f"INPUT_LENGTH = {input_length}: {cut} texts of the memorisation world are longer"
      )
    return cls(ids, examples.batch([Pick(row) for row in range(len(ids))], lengths))


@dataclasses.dataclass(frozen=True)
class Members:
  """Batches of several members at once, for `core.ensemble`: features [members, B, ...].

  Each member has examples and an order of its own: all of them once in each epoch.

  Attributes:
    examples: of each member; equally many.
    rows_each: B.
    seeds: of each member's order.
  """

  examples: Sequence[Examples]
  rows_each: int
  seeds: Sequence[int]

  @property
  def batch_size(self) -> int:
    """The leading axis, which is split over devices: how many members there are."""
    return len(self.examples)

  def __call__(self, step: int, rows: slice | None = None) -> dict[str, np.ndarray]:
    """The batch of a step, of some members."""
    members = range(len(self.examples))[rows or slice(None)]
    picked = [(self.examples[member].rows, self._picks(member, step)) for member in members]
    return {name: np.stack([some[name][at] for some, at in picked]) for name in picked[0][0]}

  def names(self, step: int) -> list[str]:
    """The ids of the examples in a batch, each with its member's seed before it."""
    return [
      f"seed {self.seeds[member]}: {some.ids[at]}"
      for member, some in enumerate(self.examples)
      for at in self._picks(member, step)
    ]

  def _picks(self, member: int, step: int) -> np.ndarray:
    size = len(self.examples[member].ids)
    places = np.arange(step * self.rows_each, (step + 1) * self.rows_each)
    epochs, places = np.divmod(places, size)
    orders = {int(epoch): self._order(member, int(epoch)) for epoch in np.unique(epochs)}
    return np.array([orders[int(e)][p] for e, p in zip(epochs, places, strict=True)])

  def _order(self, member: int, epoch: int) -> np.ndarray:
    return _order(self.seeds[member], epoch, len(self.examples[member].ids))


@functools.lru_cache(maxsize=64)
def _order(seed: int, epoch: int, size: int) -> np.ndarray:
  return np.random.default_rng([seed, epoch]).permutation(size)
