import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kard_jax import questions
from kard_jax.core.files import InputError
from kard_jax.questions import Question

GOOD = {"id": "q1", "question": "Which metal?", "options": ["tin", "iron"], "label": 1}

words = st.text(min_size=1, max_size=8).filter(str.strip)


def test_reads_what_it_wrote_and_keeps_other_fields(tmp_path):
  rows = [
    GOOD | {"source": {"page": 3}},
    GOOD | {"id": "q2", "gold": ["p1", "p2"], "options": ["yes", "no", "perhaps"], "label": 0},
  ]
  path = tmp_path / "train.jsonl"
  path.write_text("\n".join(map(json.dumps, rows)) + "\n")
  read = questions.read(path)
  assert [question.id for question in read] == ["q1", "q2"]
  assert read[0].extra == {"source": {"page": 3}}
  assert read[1].gold == ("p1", "p2")
  assert (read[0].letter, read[1].letter) == ("B", "A")
  again = tmp_path / "again.jsonl"
  assert questions.write(again, read) == 2
  assert questions.read(again) == read
  assert list(map(json.loads, again.read_text().splitlines())) == rows


@settings(max_examples=30)
@given(words, words, st.lists(words, min_size=2, max_size=26), st.data())
def test_json_round_trip(id, stem, options, data):
  label = data.draw(st.integers(0, len(options) - 1))
  question = Question(id, stem, tuple(options), label, ("p",), {"note": None})
  assert questions.parse(json.loads(json.dumps(question.to_json())), "here") == question


def test_a_question_is_hashable():
  assert len({questions.parse(GOOD, "x"), questions.parse(GOOD | {"note": [1]}, "x")}) == 2


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"id": ""}, '"id" is empty'),
    ({"id": 7}, '"id" must be a text, not 7'),
    ({"question": "  \n"}, '"question" is empty'),
    ({"question": None}, '"question" must be a text, not None'),
    ({"question": "\ud800"}, "not valid Unicode"),
    ({"options": "tin"}, '"options" must be a list of texts'),
    ({"options": ["tin"]}, "needs from 2 to 26"),
    ({"options": [str(number) for number in range(27)]}, "holds 27"),
    ({"options": ["tin", ""]}, r'"options"\[1\] is empty'),
    ({"options": ["tin", 3]}, r'"options"\[1\] must be a text'),
    ({"label": 2}, r"outside the 2 options \(0 to 1\)"),
    ({"label": -1}, "outside the 2 options"),
    ({"label": True}, "must be a whole number"),
    ({"label": "B"}, "must be a whole number"),
    ({"label": 1.0}, "must be a whole number"),
    ({"gold": "p1"}, '"gold" must be a list'),
    ({"gold": [""]}, r'"gold"\[0\] is empty'),
  ],
)
def test_bad_rows_name_place_and_field(change, message):
  with pytest.raises(InputError, match="^train.jsonl:3: .*" + message):
    questions.parse(GOOD | change, "train.jsonl:3")


@pytest.mark.parametrize("name", list(GOOD))
def test_a_missing_field_is_named(name):
  row = {key: value for key, value in GOOD.items() if key != name}
  with pytest.raises(InputError, match=f'here: the field "{name}" is missing'):
    questions.parse(row, "here")


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (
      json.dumps(GOOD) + "\n\n" + json.dumps(GOOD),
      "jsonl:3: the id 'q1' is already that of line 1",
    ),
    (json.dumps(GOOD) + "\n{", "jsonl:2: not JSON"),
    ("", "there is no question"),
  ],
)
def test_bad_files_name_the_line(tmp_path, text, message):
  path = tmp_path / "questions.jsonl"
  path.write_text(text)
  with pytest.raises(InputError, match=message):
    questions.read(path)
