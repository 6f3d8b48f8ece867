"""A host of each slice: what answers and searches there."""

import pytest

from kard_jax.core import machines


@pytest.mark.parametrize(
  ("slice_", "host", "chips"),
  [
    ("v5e-16", "v5e:2x2", 4),
    ("v5e-256", "v5e:2x2", 4),
    ("v5p-128", "v5p:2x2x1", 4),
    ("v6e-64", "v6e:2x2", 4),
    ("v4-8", "v4:2x2x1", 4),  # is one host
    ("v5e-8", "v5e:2x4", 8),  # likewise, of eight chips
    ("v5e:1x1", "v5e:1x1", 1),
    ("cpu:8", "cpu:8", 8),
  ],
)
def test_a_host_of_a_machine(slice_, host, chips):
  found = machines.of_host(machines.parse(slice_))
  assert (found.name, found.chips) == (host, chips)
  assert found == machines.parse(host)
