"""Names choose parts of a tree by whole names in a row."""

import pytest

from kard_jax.core import selection

TREE = {"encoder": {"layers_1": {"attention": {"query": {"kernel": 1}, "out": {"kernel": 2}}}}}
TREE["encoder"]["layers_10"] = {"mlp": {"wi_0": {"kernel": 3}}}


@pytest.mark.parametrize(
  ("names", "leaves"),
  [
    (["query"], [1]),
    (["attention/out"], [2]),
    (["encoder/layers_1"], [1, 2]),  # and not layers_10
    (["layers_10", "query/kernel"], [1, 3]),
    (["wi"], []),
    ([], []),
  ],
)
def test_names_choose_whole_parts_in_a_row(names, leaves):
  kept, others = selection.split(TREE, lambda path: selection.chosen(path, names))
  assert sorted(selection.flatten(kept).values()) == leaves
  assert sorted(selection.flatten(others).values()) == sorted({1, 2, 3} - set(leaves))
  assert selection.join(kept, others) == TREE
