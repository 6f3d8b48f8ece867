"""What the decoder-only families have in common: prefixes of names, and heads that may be tied."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kard_jax.convert.source import Config
from kard_jax.convert.tables import TRANSPOSED, Entry, Layout, Table
from kard_jax.convert.tensors import Tensors
from kard_jax.student import gpt

HEAD = "lm_head.weight"
HEADS = Layout("(h k) d -> d h k")  # a torch Linear that makes queries, keys or values
HEADS_BIAS = Layout("(h k) -> h k")
OUT = Layout("d (h k) -> h k d")


def is_tied(tensors: Tensors | None, tables: Iterable[str], said: bool) -> bool:
  """Whether transformers would give the head the table of the tokens.

  Args:
    tensors: of the checkpoint; None: what config.json says decides.
    tables: names under which the table of the tokens may be stored.
    said: config.json's `tie_word_embeddings`. Transformers 5 does not tie what a checkpoint brings
      as two different tensors.
  """
  if not said or tensors is None or HEAD not in tensors:
    return said
  there = [name for name in tables if name in tensors]
  return not there or any(tensors.same(HEAD, name) for name in there)


def common(config: Config) -> dict[str, Any]:
  """What every config.json says alike: the id of the padding, -1 where there is none.

  Raises:
    InputError: the weights are quantised.
  """
  if config.values.get("quantization_config") is not None:
    raise config.unsupported("quantization_config", "give the weights before quantisation")
  return {"pad_id": config.get("pad_token_id", -1)}


def prefixed(table: Table, prefix: str) -> Table:
  """Entries whose names may stand with a prefix or, in files of the body alone, without it."""
  return [
    entry._replace(name=prefix + entry.name, aliases=(entry.name, *entry.aliases))
    for entry in table
  ]


def with_head(network: gpt.GPT, body: Table) -> Table:
  """The body's entries, and the head; a tied one may be stored as well."""
  if not network.tied_embeddings:
    return [*body, Entry("logits_dense/kernel", HEAD, TRANSPOSED)]
  return [
    entry._replace(aliases=(*entry.aliases, HEAD))
    if entry.path == "token_embedder/embedding"
    else entry
    for entry in body
  ]


def affine(path: str, name: str, bias: bool = True) -> Table:
  """A norm's scale, and its bias if it has one."""
  found = [Entry(f"{path}/scale", f"{name}.weight")]
  return [*found, Entry(f"{path}/bias", f"{name}.bias")] if bias else found


def linear(path: str, name: str, layout: Layout, bias: Layout | None) -> Table:
  """A product's kernel, and its bias unless that is None."""
  found = [Entry(f"{path}/kernel", f"{name}.weight", layout)]
  return [*found, Entry(f"{path}/bias", f"{name}.bias", bias)] if bias else found
