"""The engines of `train_step.py`, each in a process of its own, told what to do over a pipe.

`python train_step_engines.py ENGINE` reads a JSON object a line from standard input, such as
`{"do": "run", "steps": 2}`, and answers each with one on standard output: what the method of that
name returns, or `{"error": ...}`. It runs in whatever environment the engine is installed in, so
that nothing but NumPy and the engine is imported.

All train the same: T5 1.1 of one shape from random weights, the same tokens, dropout 0.1, gradients
clipped by their norm, AdamW, parameters in float32 and activations in the precision asked for.
"""

from __future__ import annotations

import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import worker

LEARNING_RATE, CLIP, DROPOUT = 1e-4, 1.0, 0.1
_PEAK_SIZE = 4096  # of the square matrices whose product is the peak


def batch(vocab_size: int, rows: int, inputs: int, targets: int) -> dict[str, np.ndarray]:
  """Random tokens without padding, by T5X's names."""
  rng = np.random.default_rng(0)
  target = rng.integers(2, vocab_size, (rows, targets)).astype(np.int32)
  return {
    "encoder_input_tokens": rng.integers(2, vocab_size, (rows, inputs)).astype(np.int32),
    "decoder_input_tokens": np.pad(target[:, :-1], ((0, 0), (1, 0))),
    "decoder_target_tokens": target,
    "decoder_loss_weights": np.ones_like(target),
  }


def best(action: Any, rounds: int = 5) -> float:
  """Seconds of the fastest of a few rounds, after one that warms up."""
  action()
  seconds = []
  for _ in range(rounds):
    start = time.perf_counter()
    action()
    seconds.append(time.perf_counter() - start)
  return min(seconds)


class Engine:
  """What all have in common; `begin`, `_step` and `_product` are each engine's own."""

  def begin(self, **options: Any) -> dict[str, Any]:
    """Builds the model and what trains it; gives versions.

    Args:
      options: `shape` (as `train_step.SHAPES`), `dtype`, `rows`, `inputs`, `targets`, `threads`,
        and what only one engine reads.
    """
    raise NotImplementedError

  def _step(self) -> float:
    """Trains on the batch once; the loss a token, before it."""
    raise NotImplementedError

  def _product(self) -> Any:
    """A call that multiplies two square matrices of `_PEAK_SIZE`."""
    raise NotImplementedError

  def first(self) -> dict[str, Any]:
    """The first step, with what is compiled then."""
    start = time.perf_counter()
    loss = self._step()
    return {"first_step_s": time.perf_counter() - start, "first_loss": loss}

  def run(self, *, steps: int) -> dict[str, Any]:
    """Seconds of some steps, and the loss at the last."""
    start = time.perf_counter()
    for _ in range(steps):
      loss = self._step()
    return {"seconds": (time.perf_counter() - start) / steps, "loss": loss}

  def peak(self) -> dict[str, Any]:
    """The rate of a large matrix product, in FLOP/s."""
    return {"flops": 2 * _PEAK_SIZE**3 / best(self._product())}

  def memory(self) -> dict[str, Any]:
    """Bytes that were resident at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
      if line.startswith("VmHWM:"):
        return {"peak_rss_bytes": int(line.split()[1]) * 1024}
    return {"peak_rss_bytes": 0}


class _Jax(Engine):
  """What both engines on JAX do alike."""

  def _product(self) -> Any:
    import jax
    import jax.numpy as jnp

    a = jnp.ones((_PEAK_SIZE, _PEAK_SIZE), self._dtype)
    product = jax.jit(lambda a, b: a @ b)
    return lambda: jax.block_until_ready(product(a, a))

  def _jax(self, options: dict[str, Any]) -> dict[str, Any]:
    """Imports JAX; gives versions."""
    self._dtype = options["dtype"]
    import jax

    self._batch = batch(
      options["shape"]["vocab_size"], options["rows"], options["inputs"], options["targets"]
    )
    return {"version": f"jax {jax.__version__}"}


class Ours(_Jax):
  """kard_jax: the step of `core.train`, as `launch/train.py` runs it."""

  def begin(self, **options: Any) -> dict[str, Any]:
    """See `Engine`; `scan` and `remat` are the network's attributes."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from kard_jax.core import train
    from kard_jax.core.optimizers import AdamW, Schedule
    from kard_jax.core.partitioning import Partitioner
    from kard_jax.core.state import Beginning
    from kard_jax.student.objective import TokenCrossEntropy
    from kard_jax.student.t5 import T5

    begun = self._jax(options)
    network = T5(
      **options["shape"],
      dropout_rate=DROPOUT,
      dtype=options["dtype"],
      scan_layers=options.get("scan", False),
      remat=options.get("remat", "none"),
    )
    objective = TokenCrossEntropy(network)
    partitioner = Partitioner({"data": 1, "tensor": 1}, [("batch", "data")], devices=1)
    schedule = Schedule(LEARNING_RATE, warmup=0)
    trainer = train.Trainer(1, AdamW(schedule, clip=CLIP), partitioner)
    tx = trainer.optimizer(1)
    beginning = Beginning(objective, tx, self._batch, 0, partitioner)
    self._state, self._frozen = beginning.begin(types.SimpleNamespace(latest=None))
    self._train = partitioner.jit(
      train.make_step(objective, tx, trainer),
      donate_argnums=0,
      out_shardings=(beginning.shardings, None),
    )
    self._put, self._rows = partitioner.put, options["rows"]
    return begun

  def _step(self) -> float:
    batch = self._put(self._batch, self._rows)
    self._state, metrics = self._train(self._state, self._frozen, batch)
    return float(metrics["cross_entropy"])


class T5X(_Jax):
  """T5X's network (t5x/examples/t5/network.py), with Optax."""

  def begin(self, **options: Any) -> dict[str, Any]:
    """See `Engine`; `t5x_path` is a checkout of google-research/t5x."""
    begun = self._jax(options)
    import jax
    import jax.numpy as jnp
    import optax

    self._network = _t5x(options["t5x_path"], options["shape"], options["dtype"])
    tokens = [
      jnp.asarray(self._batch[f"{name}_tokens"])
      for name in ("encoder_input", "decoder_input", "decoder_target")
    ]
    init = jax.jit(lambda: self._network.init(jax.random.key(0), *tokens, enable_dropout=False))
    self._params = init()["params"]
    tx = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(LEARNING_RATE, weight_decay=0.0))
    self._opt_state, self._count = tx.init(self._params), 0

    def loss(params: Any, tokens: list[Any], key: Any) -> Any:
      logits = self._network.apply({"params": params}, *tokens, rngs={"dropout": key})
      return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[2]).mean()

    def step(params: Any, opt_state: Any, tokens: list[Any], count: Any) -> tuple[Any, Any, Any]:
      key = jax.random.fold_in(jax.random.key(1), count)
      value, gradient = jax.value_and_grad(loss)(params, tokens, key)
      updates, opt_state = tx.update(gradient, opt_state, params)
      return optax.apply_updates(params, updates), opt_state, value

    self._tokens = tokens
    self._train = jax.jit(step, donate_argnums=(0, 1))
    return begun

  def _step(self) -> float:
    self._count += 1
    self._params, self._opt_state, loss = self._train(
      self._params, self._opt_state, self._tokens, self._count
    )
    return float(loss)


def _t5x(path: str, shape: dict[str, Any], dtype: str) -> Any:
  """T5X's network, without the package around it, which needs much that the network does not."""
  package = types.ModuleType("t5x")
  package.__path__ = [str(Path(path) / "t5x")]
  sys.modules["t5x"] = package
  from t5x.examples.t5 import network

  renamed = {name: value for name, value in shape.items() if name != "embed_dim"}
  return network.Transformer(
    network.T5Config(
      **renamed,
      emb_dim=shape["embed_dim"],
      dtype=dtype,
      mlp_activations=("gelu", "linear"),
      dropout_rate=DROPOUT,
      logits_via_embedding=False,
    )
  )


class HuggingFace(Engine):
  """Hugging Face's T5 on torch; bfloat16 is autocast, as its users have it."""

  def begin(self, **options: Any) -> dict[str, Any]:
    """See `Engine`."""
    import torch
    import transformers

    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    self._torch, self._bfloat16 = torch, options["dtype"] == "bfloat16"
    shape = options["shape"]
    config = transformers.T5Config(
      vocab_size=shape["vocab_size"],
      d_model=shape["embed_dim"],
      d_kv=shape["head_dim"],
      d_ff=shape["mlp_dim"],
      num_layers=shape["num_encoder_layers"],
      num_decoder_layers=shape["num_decoder_layers"],
      num_heads=shape["num_heads"],
      feed_forward_proj="gated-gelu",
      tie_word_embeddings=False,
      dropout_rate=DROPOUT,
      use_cache=False,
    )
    model = transformers.T5ForConditionalGeneration(config)
    # transformers 5 ties every T5 that it makes; 1.1 has a head of its own.
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.05)
    self._model = model.train()
    self._optimizer = torch.optim.AdamW(
      model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True
    )
    arrays = batch(shape["vocab_size"], options["rows"], options["inputs"], options["targets"])
    self._tensors = {
      "input_ids": torch.from_numpy(arrays["encoder_input_tokens"].astype(np.int64)),
      "decoder_input_ids": torch.from_numpy(arrays["decoder_input_tokens"].astype(np.int64)),
      "labels": torch.from_numpy(arrays["decoder_target_tokens"].astype(np.int64)),
    }
    return {"version": f"torch {torch.__version__}, transformers {transformers.__version__}"}

  def _step(self) -> float:
    torch = self._torch
    self._optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._bfloat16):
      loss = self._model(**self._tensors).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(self._model.parameters(), CLIP)
    self._optimizer.step()
    return loss.item()

  def _product(self) -> Any:
    dtype = self._torch.bfloat16 if self._bfloat16 else self._torch.float32
    a = self._torch.ones((_PEAK_SIZE, _PEAK_SIZE), dtype=dtype)
    return lambda: a @ a


ENGINES: dict[str, type[Engine]] = {"ours": Ours, "t5x": T5X, "hf_torch": HuggingFace}


if __name__ == "__main__":
  worker.serve(ENGINES)
