"""Tables of strings on disk."""

import hypothesis
import pytest
from hypothesis import strategies as st

from kard_jax.core.files import InputError
from kard_jax.retrieval import strings

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@hypothesis.settings(
  max_examples=50, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(values=st.lists(TEXT, unique=True, max_size=20), other=TEXT, sort=st.booleans())
def test_every_string_is_found_where_it_stands(tmp_path, values, other, sort):
  values = sorted(values) if sort else values
  strings.save(tmp_path, "t", values, in_order=sort)
  table = strings.load(tmp_path, "t", in_order=sort, remedy="")
  assert list(table) == values == [table[i] for i in range(len(table))] == table[:]
  assert [table.find(value) for value in values] == list(range(len(values)))
  assert table.find(other) == (values.index(other) if other in values else None)
  assert table.find("\ud800") is None


def test_repeated_string_is_named(tmp_path):
  with pytest.raises(InputError, match=r"ids: 'b' stands twice, at 0 and 2"):
    strings.save(tmp_path, "ids", ["b", "a", "b"], in_order=False)


def test_negative_and_outside(tmp_path):
  strings.save(tmp_path, "t", ["b", "a"], in_order=False)
  table = strings.load(tmp_path, "t", in_order=False, remedy="")
  assert table[-1] == "a"
  with pytest.raises(IndexError):
    table[2]
