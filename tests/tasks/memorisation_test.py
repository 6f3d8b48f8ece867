"""The worlds of the memorisation experiment, and the batches of several of them."""

import collections

import numpy as np
import pytest

from kard_jax.core.files import InputError
from tasks import memorisation
from tasks.memorisation import PROMPTS, Examples, Facts, Members
from tasks.vocabularies import Vocabulary


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
  folder = tmp_path_factory.mktemp("vocabulary")
  size = memorisation.write_vocabulary(folder, 4)
  vocabulary = Vocabulary(folder)
  assert vocabulary.vocab_size == size
  return vocabulary


FACTS = Facts(seed=3)
QUESTIONS = FACTS.questions()
PASSAGES = {passage.id: passage for passage in FACTS.passages()}


def test_a_world_is_a_function_of_its_seed():
  assert Facts(3).all == FACTS.all != Facts(4).all
  assert Facts(3).questions() == QUESTIONS


def test_each_name_has_one_fact_and_nothing_tells_its_value():
  assert len({fact.place for fact in FACTS.all}) == len(FACTS.all) == len(PASSAGES) == 4096
  labels = collections.Counter(question.label for question in QUESTIONS[::4])
  assert set(labels) == set(range(8))
  assert all(abs(count - 512) < 5 * 512**0.5 for count in labels.values())
  by_relation = {fact.relation.name: memorisation.options_of(fact.relation) for fact in FACTS.all}
  assert len(by_relation) == 4
  for question, fact in zip(QUESTIONS[::4], FACTS.all, strict=True):
    assert question.options == by_relation[fact.relation.name]
    assert question.options[question.label] == fact.value.option


def test_one_wording_of_each_fact_is_held_out():
  held_out = collections.Counter(q.extra["fact"] for q in QUESTIONS if q.extra["held_out"])
  assert held_out == dict.fromkeys(range(4096), 1)
  wordings = collections.Counter(q.id.split("-")[1] for q in QUESTIONS if q.extra["held_out"])
  assert min(wordings.values()) > 900  # any of the four


def test_a_passage_states_its_fact(vocabulary):
  for question, fact in zip(QUESTIONS[::4], FACTS.all, strict=True):
    text = PASSAGES[question.gold[0]].text
    assert fact.place in text
    assert fact.value.word in text.split() or f"{fact.value.word}." in text.split()


def test_names_are_three_tokens_and_no_word_is_unknown(vocabulary):
  assert len(vocabulary.encode("Balbibran")) == 3
  texts = [PROMPTS.student_input(q, (PASSAGES[q.gold[0]],)) for q in QUESTIONS[:2000]]
  texts += [PROMPTS.student_target(q, None) for q in QUESTIONS[:2000]]
  assert not any(vocabulary.unk_id in vocabulary.encode(text) for text in texts)


def test_what_is_written_is_read_by_the_parser(vocabulary):
  for question in QUESTIONS[:40]:
    text = vocabulary.decode(vocabulary.encode(PROMPTS.student_target(question, None)))
    assert PROMPTS.parse(text, question.options).answer == question.label


def examples(vocabulary, first, last, passages=False):
  asked = QUESTIONS[first:last]
  found = [[PASSAGES[q.gold[0]]] if passages else [] for q in asked]
  return Examples.make(asked, found, vocabulary, 26)


def test_rows_are_the_prompt_and_its_answer(vocabulary):
  made = examples(vocabulary, 0, 4, passages=True)
  question = QUESTIONS[2]
  text = PROMPTS.student_input(question, (PASSAGES[question.gold[0]],))
  want = [*vocabulary.encode(text), vocabulary.eos_id]
  assert made.rows["encoder_input_tokens"][2].tolist() == want + [0] * (26 - len(want))
  target = [*vocabulary.encode(f"Answer {question.letter}"), vocabulary.eos_id]
  assert made.rows["decoder_target_tokens"][2].tolist() == target
  assert made.rows["decoder_loss_weights"].all()  # equal weights, as an ensemble needs


def test_what_would_be_cut_is_refused(vocabulary):
  with pytest.raises(InputError, match=r"INPUT_LENGTH = 5: 4 texts"):
    Examples.make(QUESTIONS[:4], [[]] * 4, vocabulary, 5)


def test_members_see_all_their_examples_once_an_epoch_in_their_own_order(vocabulary):
  parts = [examples(vocabulary, 0, 40), examples(vocabulary, 40, 80)]
  members = Members(parts, 16, seeds=(0, 1))
  seen = [members.names(step) for step in range(5)]  # two epochs of 40 in 5 batches of 16
  assert seen[2] == Members(parts, 16, seeds=(0, 1)).names(2)  # whatever was asked before
  for number, part in enumerate(parts):
    ids = [name for names in seen for name in names[16 * number : 16 * (number + 1)]]
    first, second = ids[:40], ids[40:]
    assert sorted(first) == sorted(second) == sorted(f"seed {number}: {id}" for id in part.ids)
    assert first != second
  assert [name[8:] for name in seen[0][:16]] != [name[8:] for name in seen[0][16:]]


def test_a_batch_holds_the_rows_of_its_names(vocabulary):
  parts = [examples(vocabulary, 0, 40), examples(vocabulary, 40, 80)]
  members = Members(parts, 16, seeds=(0, 1))
  batch, names = members(3), members.names(3)
  assert {name: array.shape[:2] for name, array in batch.items()} == dict.fromkeys(batch, (2, 16))
  row = parts[1].ids.index(names[16 + 5].removeprefix("seed 1: "))
  np.testing.assert_array_equal(
    batch["encoder_input_tokens"][1, 5], parts[1].rows["encoder_input_tokens"][row]
  )
  np.testing.assert_array_equal(
    members(3, slice(1, 2))["encoder_input_tokens"], batch["encoder_input_tokens"][1:]
  )


@pytest.mark.parametrize(("arguments", "message"), [((0, 4, 4097), "4096"), ((0, 11), "1 to 10")])
def test_what_there_is_not_is_refused(arguments, message):
  with pytest.raises(InputError, match=message):
    Facts(*arguments)


def test_a_smaller_world_is_the_beginning_of_the_whole():
  assert Facts(3, 4, 50).all == FACTS.all[:50]
