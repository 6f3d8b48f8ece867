"""Layouts move numbers exactly, both ways, and read no more than they need."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kard_jax.convert import tables
from kard_jax.core.files import InputError

SIZES = {"d": 5, "h": 3, "k": 4}
LAYOUTS = {  # equation: ours from theirs, written out
  "o i -> i o": lambda theirs, part, d, h, k: theirs.T,
  "(h k) d -> d h k": lambda theirs, part, d, h, k: theirs.T.reshape(d, h, k),
  "d (h k) -> h k d": lambda theirs, part, d, h, k: theirs.reshape(d, h, k).transpose(1, 2, 0),
  "d (parts h k) -> d h k": lambda theirs, part, d, h, k: np.split(theirs, 3, 1)[part].reshape(
    d, h, k
  ),
  "(h parts k) d -> d h k": lambda theirs, part, d, h, k: theirs.reshape(h, 3, k, d)[
    :, part
  ].transpose(2, 0, 1),
  "(parts h k) -> h k": lambda theirs, part, d, h, k: np.split(theirs, 3)[part].reshape(h, k),
}
equations = pytest.mark.parametrize("equation", LAYOUTS)


def layout_and_shape(equation, part=0):
  fused = "parts" in equation
  layout = tables.Layout(equation, (part, 3) if fused else (0, 1))
  sizes = SIZES | {"o": 6, "i": 7}
  return layout, tuple(sizes[axis] for axis in equation.split("->")[1].split())


@equations
@given(data=st.data())
def test_any_part_is_that_of_the_whole(equation, data):
  part = data.draw(st.integers(0, 2))
  layout, shape = layout_and_shape(equation, part)
  stored = np.arange(np.prod(layout.stored_shape(shape))).reshape(layout.stored_shape(shape))
  want = LAYOUTS[equation](stored, part, **SIZES)
  assert want.shape == shape
  index = []
  for size in shape:
    start = data.draw(st.integers(0, size - 1))
    index.append(slice(start, data.draw(st.integers(start + 1, size))))
  read = []

  def take(ranges):
    read.append(stored[ranges].size)
    return stored[ranges]

  np.testing.assert_array_equal(layout.read(take, shape, tuple(index)), want[tuple(index)])
  if index == [slice(0, size) for size in shape] and "h parts" not in equation:
    assert read == [want.size]


@equations
def test_writing_undoes_reading(equation):
  layout, shape = layout_and_shape(equation)
  parts = range(3 if "parts" in equation else 1)
  stored = np.random.default_rng(0).random(layout.stored_shape(shape), np.float32)
  whole = tuple(slice(0, size) for size in shape)
  ours = []
  for part in parts:
    layout, _ = layout_and_shape(equation, part)
    ours.append(layout.read(lambda ranges: stored[ranges], shape, whole))
  assert len({array.tobytes() for array in ours}) == len(parts)
  np.testing.assert_array_equal(layout.write(ours), stored)


def test_a_slice_over_heads_reads_only_those_heads():
  layout = tables.Layout("(h k) d -> d h k")
  asked = []

  def take(ranges):
    asked.append(ranges)
    return np.zeros((32, 5))[ranges]

  layout.read(take, (5, 8, 4), (slice(0, 5), slice(2, 4), slice(0, 4)))
  assert asked == [(slice(8, 16), slice(0, 5))]


def entries(*paths):
  return [tables.Entry(path, path.replace("/", ".")) for path in paths]


def test_a_stacked_parameter_has_an_entry_a_layer():
  table = entries("norm/scale", "encoder/layers_0/wo", "encoder/layers_1/wo")
  matched = tables.match(table, {"norm/scale": (3,), "encoder/layers/wo": (2, 4, 3)})
  names = [entry.name for entry in matched["encoder/layers/wo"]]
  assert names == ["encoder.layers_0.wo", "encoder.layers_1.wo"]
  stored = {entry.name: np.full((4, 3), i) for i, entry in enumerate(table)}
  index = (slice(1, 2), slice(1, 4), slice(0, 2))
  read = tables.read(
    "encoder/layers/wo",
    matched["encoder/layers/wo"],
    (2, 4, 3),
    index,
    lambda entry, part: stored[entry.name][part],
  )
  assert read.dtype == np.float32
  np.testing.assert_array_equal(read, np.full((1, 3, 2), 2))


@pytest.mark.parametrize(
  ("shapes", "complaint"),
  [
    ({"a/b": (1,), "lora_a": (1,)}, "parameter lora_a that no checkpoint"),
    ({}, "lacks the parameter a/b"),
  ],
)
def test_what_does_not_match_is_named(shapes, complaint):
  with pytest.raises(InputError, match=complaint):
    tables.match(entries("a/b"), shapes)
