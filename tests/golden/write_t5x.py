"""Writes t5x.tar.xz: T5X checkpoints of tiny T5 models, unrolled and scanned, and their logits.

T5X itself makes and saves them, with Adafactor's state. Not part of the tests: it needs T5X, which
installs from git heads only. With the sources of google-research/t5x, google/airio and
google-research/jestimator (without its models' data) in a folder SOURCES:

  python -m venv /tmp/t5x && /tmp/t5x/bin/pip install -r requirements.txt \\
    fiddle cached_property chex
  PYTHONPATH=SOURCES /tmp/t5x/bin/python tests/golden/write_t5x.py

`unrolled` is T5 1.1's form (t5x.examples.t5), `tied` the first T5's, `scanned` that of
t5x.examples.scalable_t5, where each layer has a position bias of its own, `shared` the same with
the first layer's bias in all of them.
"""

import io
import pathlib
import tarfile
import tempfile

import jax
import numpy as np
from flax.core import freeze, unfreeze
from t5x import adafactor, checkpoints, partitioning, train_state
from t5x.examples.scalable_t5 import network as scalable
from t5x.examples.t5 import network as minimal

STEP, ROWS, INPUT, TARGET = 7, 2, 9, 6
SIZES = {
  "vocab_size": 24,
  "emb_dim": 10,
  "num_heads": 2,
  "head_dim": 3,
  "mlp_dim": 14,
  "num_encoder_layers": 2,
  "num_decoder_layers": 3,
  "dropout_rate": 0.0,
}
GATED = {"mlp_activations": ("gelu", "linear"), "logits_via_embedding": False}
TIED = {"mlp_activations": ("relu",), "logits_via_embedding": True}
MODELS = {
  "unrolled": (minimal, GATED),
  "tied": (minimal, TIED),
  "scanned": (scalable, GATED),
  "shared": (scalable, GATED),
}


def write(name, folder):
  """Saves one model; gives its inputs and logits."""
  module, options = MODELS[name]
  network = module.Transformer(config=module.T5Config(**SIZES, **options))
  rng = np.random.default_rng(sorted(MODELS).index(name))
  inputs = rng.integers(2, SIZES["vocab_size"], (ROWS, INPUT)).astype(np.int32)
  inputs[1, 5:] = 0
  targets = rng.integers(2, SIZES["vocab_size"], (ROWS, TARGET)).astype(np.int32)
  targets[:, 0] = 0
  arguments = (inputs, targets, targets)  # the last only says where the target's padding is
  variables = unfreeze(network.init(jax.random.key(0), *arguments, enable_dropout=False))

  def random(path, leaf):
    noise = rng.standard_normal(leaf.shape)
    if "scale" in jax.tree_util.keystr(path):
      return (1 + 0.2 * noise).astype(np.float32)
    scale = 1 if "embedding" in jax.tree_util.keystr(path) else leaf.shape[0] ** -0.5
    return (scale * noise).astype(np.float32)

  params = jax.tree_util.tree_map_with_path(random, variables["params"])
  if name == "shared":
    for stack in ("encoder", "decoder"):
      table = params[stack][stack]["relpos_bias"]["rel_embedding"]
      table[:] = table[:, :1]
  full = np.ones_like(targets)
  logits = network.apply({"params": params}, inputs, targets, full, enable_dropout=False)
  optimizer = adafactor.Adafactor(
    1e-3, logical_factor_rules=adafactor.standard_logical_factor_rules()
  )
  state = train_state.FlaxOptimTrainState.create(
    optimizer, freeze({"params": params, "params_axes": variables["params_axes"]})
  )
  state = state.replace_step(np.int32(STEP))
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  checkpoints.Checkpointer(state, partitioner, str(folder)).save(state)
  return {"encoder_input_tokens": inputs, "decoder_input_tokens": targets, "logits": logits}


def main():
  out = pathlib.Path(__file__).parent / "t5x.tar.xz"
  with tempfile.TemporaryDirectory() as temporary:
    for name in MODELS:
      folder = pathlib.Path(temporary) / name
      folder.mkdir()
      arrays = io.BytesIO()
      np.savez(arrays, **write(name, folder))
      (folder / "arrays.npz").write_bytes(arrays.getvalue())
    with tarfile.open(out, "w:xz", preset=9) as packed:
      for file in sorted(pathlib.Path(temporary).rglob("*")):
        if file.is_file():
          info = tarfile.TarInfo(str(file.relative_to(temporary)))  # no time: the same each time
          info.size = file.stat().st_size
          packed.addfile(info, io.BytesIO(file.read_bytes()))
  print(out, out.stat().st_size)


if __name__ == "__main__":
  main()
