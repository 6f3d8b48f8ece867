"""Brings weights in and out: Hugging Face folders and T5X checkpoints, and compares them.

Examples:
  python launch/convert.py check google/flan-t5-base
  python launch/convert.py import google/flan-t5-base runs/flan_t5_base
  python launch/convert.py export runs/mine/student out --to=huggingface --like=google/flan-t5-base
  python launch/convert.py export runs/mine/student out --to=t5x --like=google/flan-t5-base

SOURCE, and what --like names, is a folder or a name on the Hugging Face Hub (config.json,
safetensors, tokenizer), or the folder of a T5X checkpoint. An Orbax folder is one that
launch/train.py has written, or `import`.
"""

from __future__ import annotations

import pathlib
import sys

if __name__ == "__main__":  # with the project's root on the path
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
  from launch import convert as module

  sys.exit(module.main())

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from kard_jax.core import config
from kard_jax.core.files import InputError

_CHECK = """Loads a model here and in transformers, in float32: prints the largest difference of
logits over random tokens with padding, and whether both write the same tokens greedily. Status 0:
equal (1e-5 of the largest logit, all tokens the same); 1: not; 2: cannot be loaded here.

  python launch/convert.py check google/flan-t5-base
"""
_IMPORT = """Writes the parameters of a model as a checkpoint that launch/train.py and
launch/answer.py read.

  python launch/convert.py import google/flan-t5-base runs/flan_t5_base
"""
_EXPORT = """Writes the parameters of a checkpoint as a Hugging Face folder that transformers opens
with from_pretrained, or as a T5X checkpoint; --to=peft writes the adapters of a LoRA run alone, as
PEFT reads them. --like says the architecture, and the names, element
type and tokenizer files that are to be written.

  python launch/convert.py export runs/mine/student out --to=huggingface --like=google/flan-t5-base

Of a reranker over a BERT, its encoder is written.
"""


def main(argv: Sequence[str] | None = None) -> int:
  """The command line. Gives the exit status."""
  arguments = _flags().parse_args(argv)
  status = 0

  def work() -> None:
    nonlocal status
    status = int(arguments.work(arguments) or 0)

  return config.exit_status(work) or status


def _flags() -> argparse.ArgumentParser:
  plain = argparse.RawDescriptionHelpFormatter
  flags = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
  verbs = flags.add_subparsers(required=True, metavar="check | import | export")
  one = verbs.add_parser("check", description=_CHECK, formatter_class=plain)
  one.add_argument("source", metavar="SOURCE", help="a Hugging Face folder or name")
  one.add_argument("--prompts", type=int, default=4, metavar="N", help="continued greedily (4)")
  one.add_argument("--seed", type=int, default=0, metavar="N", help="of the random tokens (0)")
  one.set_defaults(work=check)
  one = verbs.add_parser("import", description=_IMPORT, formatter_class=plain)
  one.add_argument("source", metavar="SOURCE", help="a Hugging Face folder or name, or T5X's")
  one.add_argument("out", metavar="OUT", help="the folder to write")
  one.add_argument("--scan", action="store_true", help="for a network with scan_layers = True")
  one.set_defaults(work=bring)
  one = verbs.add_parser("export", description=_EXPORT, formatter_class=plain)
  one.add_argument("folder", metavar="FOLDER", help="of Orbax checkpoints")
  one.add_argument("out", metavar="OUT", help="the folder to write")
  one.add_argument("--to", choices=("huggingface", "t5x", "peft"), default="huggingface")
  one.add_argument("--like", required=True, metavar="SOURCE", help="a model of the same shape")
  one.add_argument("--checkpoint", choices=("best", "latest"), default="best")
  one.add_argument("--dtype", help="float32, bfloat16 or float16 (default: that of --like)")
  one.set_defaults(work=export)
  return flags


def check(arguments: argparse.Namespace) -> int:
  """Compares with transformers; gives 1 where the two differ."""
  from kard_jax.convert import check as check_lib  # brings JAX, which --help does not need

  if arguments.prompts < 0:
    raise InputError(f"--prompts={arguments.prompts}: give 0 or more")
  report = check_lib.check(arguments.source, prompts=arguments.prompts, seed=arguments.seed)
  print(report, flush=True)
  return 0 if report.equal else 1


def bring(arguments: argparse.Namespace) -> None:
  """Imports: writes an Orbax checkpoint of step 0, and prints the network's settings."""
  import jax

  from kard_jax.convert import huggingface, t5x, zarr_store
  from kard_jax.core import checkpoints

  settings = {"scan_layers": True} if arguments.scan else {}
  library = t5x if zarr_store.is_checkpoint(arguments.source) else huggingface
  network = library.network(arguments.source, **settings)
  with checkpoints.Checkpoints(best=0).open(arguments.out) as run:
    if run.latest is not None:
      raise InputError(f"{arguments.out}: holds a checkpoint already; give another folder")
    params = library.load(arguments.source, network)
    run.save(0, {"params": params}, None)
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  print(f"{arguments.out}: {count:,} parameters, float32, of this network:", flush=True)
  for line in _bindings(network):
    print(f"  {line}", flush=True)


def _bindings(part: Any) -> list[str]:
  """What differs from the defaults of a network, or of settings in it, as gin says it."""
  name, lines = _gin_name(part), []
  for field in dataclasses.fields(part):
    value = getattr(part, field.name)
    if field.name in ("name", "parent") or value == field.default:
      continue
    if dataclasses.is_dataclass(value):
      lines += [*_bindings(value), f"{name}.{field.name} = @{_gin_name(value)}()"]
    else:
      lines.append(f"{name}.{field.name} = {value!r}")
  return lines


def _gin_name(part: Any) -> str:
  return f"{type(part).__module__.rpartition('.')[2]}.{type(part).__name__}"


def export(arguments: argparse.Namespace) -> None:
  """Exports the parameters of an Orbax checkpoint."""
  from kard_jax.convert import huggingface, t5x, zarr_store

  like, to_t5x = arguments.like, arguments.to == "t5x"
  if arguments.to == "peft":
    _export_adapters(arguments)
    return
  if zarr_store.is_checkpoint(like):
    if not to_t5x:
      raise InputError(
        f"--like={like}: a T5X checkpoint; --to=huggingface needs a Hugging Face folder or name, "
        "for config.json and the tokenizer"
      )
    network: Any = t5x.network(like)
  else:
    network = huggingface.network(like)
    if to_t5x and not isinstance(network, t5x.NETWORK):
      raise InputError(f"--to=t5x: T5 alone has a form there; {like} is another architecture")
  network, params = _restored(arguments.folder, network, arguments.checkpoint)
  if to_t5x:
    form = like if zarr_store.is_checkpoint(like) else None
    out = t5x.export(params, network, arguments.out, form, dtype=arguments.dtype)
  else:
    huggingface.export(params, network, arguments.out, like, dtype=arguments.dtype)
    out = pathlib.Path(arguments.out)
  size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
  print(f"{out}: {size:,} bytes, from {arguments.folder}", flush=True)


def _export_adapters(arguments: argparse.Namespace) -> None:
  """Exports the adapters of a LoRA run alone."""
  from kard_jax.convert import huggingface, initial, peft

  place = initial.find(arguments.folder, which=arguments.checkpoint)
  adapters, adapter = initial.adapters(place)
  network = huggingface.network(arguments.like)
  peft.export(adapters, adapter, network, arguments.out, arguments.like)
  print(f"{arguments.out}: adapters of rank {adapter.rank}, from {arguments.folder}", flush=True)


def _restored(folder: str, network: Any, which: str) -> tuple[Any, Any]:
  """A run's parameters, adapters merged, and the network in their form: unrolled or scanned."""
  from kard_jax.convert import initial
  from kard_jax.reranker import bert

  place = initial.find(folder, which=which)
  if isinstance(network, bert.Bert):
    return network, _encoder(place, network)
  wrong: InputError | None = None
  for scan in (False, True):
    form = dataclasses.replace(network, scan_layers=scan)
    try:
      return form, initial.load(place, form)
    except InputError as error:
      wrong = wrong or error
  assert wrong is not None
  raise wrong


def _encoder(place: Any, encoder: Any) -> Any:
  """A reranker's encoder; what is beside it has no place in a BERT's folder."""
  import numpy as np

  from kard_jax.convert import initial
  from kard_jax.core import checkpoints
  from kard_jax.reranker.network import CrossEncoder, LateInteraction

  if place.step is None:
    raise InputError(f"{place.folder}: not the folder of a training run")
  stored = checkpoints.restore_all_params(place.folder, place.step)
  if "encoder" not in stored:
    raise InputError(f"{place.folder}: not of a reranker, and --like is a BERT")
  width = stored["projection"]["kernel"].shape[-1] if "projection" in stored else None
  scorer = (
    CrossEncoder(encoder, pooler="pooler" in stored)
    if "head" in stored
    else LateInteraction(encoder, width)
  )
  tokens = [np.zeros((1, 8), np.int32), np.zeros((1, 1, 8), np.int32)]
  return initial.load(place, scorer, inputs=tokens)["encoder"]
