"""Every name leads to an activation of ours."""

import pathlib

import pytest

from kard_jax.convert import activations
from kard_jax.convert.source import Config
from kard_jax.core.activations import ACTIVATIONS
from kard_jax.core.files import InputError


def test_names_lead_to_functions():
  assert set(activations.OURS.values()) == set(ACTIVATIONS)


def test_an_unknown_one_is_told_with_the_file_and_the_setting():
  config = Config(pathlib.Path("some/config.json"), {})
  with pytest.raises(InputError, match=r"config.json: hidden_act names the activation 'xielu'"):
    activations.ours(config, "hidden_act", "xielu")
