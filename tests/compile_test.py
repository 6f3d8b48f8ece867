"""Compiling ahead: what is said of a program can be counted by hand."""

import functools
import importlib.util
import json
import subprocess
import sys
from unittest import mock

import flax.linen as nn
import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from kard_jax.core import ahead, config, gin_text, gpus, hlo, machines
from kard_jax.core.files import InputError
from kard_jax.retrieval import search_xla
from launch import compile as launcher

ONE_LAYER = {"t5.T5.num_encoder_layers": 1, "t5.T5.num_decoder_layers": 1}
TINY = "gin_configs/models/t5_tiny.gin"
EIGHT = "gin_configs/hardware/cpu_8_devices.gin"
SMALL = {"VOCAB_SIZE": 256, "INPUT_LENGTH": 16, "TARGET_LENGTH": 8, "BATCH_SIZE": 8}


def run(tmp_path, files, settings, *flags, topology="cpu:8"):
  """Status of the launcher, and its rows by program."""
  shown = tmp_path / "rows.json"
  argv = [f"--gin_file={path}" for path in files]
  argv += [f"--gin.{name}={value}" for name, value in settings.items()]
  status = launcher.main([*argv, f"--topology={topology}", f"--json={shown}", *flags])
  rows = ahead.from_json(shown.read_text()) if status == 0 else []
  return status, {row.program: row for row in rows}


def test_the_train_step_takes_what_its_state_and_batch_take(tmp_path, capsys):
  files = [TINY, "gin_configs/runs/student.gin", EIGHT]
  status, rows = run(tmp_path, files, SMALL | ONE_LAYER)
  assert status == 0
  row = rows["train"]
  assert (row.machine, row.chips) == ("cpu:8", 8)
  assert row.mesh == {"data": 2, "fsdp": 2, "tensor": 2}
  shrunk = ["VOCAB_SIZE=256", *(f"{name}=1" for name in ONE_LAYER)]
  config.activate(gin_text.resolve_unchecked([TINY, EIGHT], shrunk))
  network, partitioner = (
    gin.query_parameter(f"{macro}/gin.macro.value").scoped_configurable_fn()
    for macro in ("NETWORK", "PARTITIONER")
  )
  tokens = jnp.zeros((2, 8), jnp.int32)
  with partitioner.active():
    boxed = jax.eval_shape(network.init, jax.random.key(0), tokens, tokens)["params"]
  shapes, places = nn.meta.unbox(boxed), partitioner.shardings(boxed)
  part = sum(
    4 * np.prod(place.shard_shape(leaf.shape))
    for leaf, place in zip(jax.tree.leaves(shapes), jax.tree.leaves(places), strict=True)
  )
  assert row.parameters == sum(leaf.size for leaf in jax.tree.leaves(shapes))
  batch = 8 // 4 * (16 + 3 * 8) * 4  # two rows a device: tokens of inputs and, thrice, of targets
  counters = 12  # the step's, and two of the optimiser's
  assert row.arguments == pytest.approx(3 * part + batch + counters, abs=8)
  assert row.peak >= row.arguments + row.temporaries
  assert row.fits
  # A forward pass and twice as much again: 128 tokens of inputs, 64 of targets, all 128 wide.
  layer = 3 * 128 * 256  # of the feed-forward part
  kernels = 128 * (4 * 128**2 + layer) + 64 * (6 * 128**2 + layer + 128 * 256) + 128 * 2 * 128**2
  scores = 2 * 8 * (16 * 16 + 8 * 8 + 8 * 16) * 128
  assert row.flops == 3 * 2 * (kernels + scores)
  assert row.collectives["all-reduce"].bytes > 0
  assert row.collectives["all-gather"].bytes > 0
  table = capsys.readouterr().out
  assert "data 2 x fsdp 2 x tensor 2" in table
  assert len({line.count("|") for line in table.splitlines()}) == 1


def test_answering_compiles_reading_and_writing(tmp_path):
  files = [TINY, "gin_configs/runs/answer.gin", EIGHT]
  small = SMALL | ONE_LAYER | {"SAMPLES": 1, "GREEDY": True}  # no sorting: it compiles sooner
  status, rows = run(tmp_path, files, small)
  assert status == 0
  assert list(rows) == ["read", "write"]
  assert rows["read"].parameters == rows["write"].parameters > 400_000
  assert rows["write"].arguments > 0
  assert 0 < rows["write"].flops < rows["read"].flops


def test_a_reranker_and_the_search(tmp_path, monkeypatch):
  compiled = ahead.compile_program

  def all_but_training(program, machine, mesh, kind, effort):  # whose compilation is tested above
    if program.name != "train":
      return compiled(program, machine, mesh, kind, effort)
    assert program.flops > 0
    row = dict.fromkeys(ahead.Report._fields, 0) | {"mesh": mesh, "collectives": {}}
    row |= {"program": "train", "parameters": program.parameters, "machine": machine.name}
    return ahead.Report(**row), None

  monkeypatch.setattr(ahead, "compile_program", all_but_training)
  files = ["gin_configs/models/reranker_tiny.gin", "gin_configs/runs/reranker.gin", EIGHT]
  settings = {"BATCH_SIZE": 8, "QUERY_LENGTH": 8, "PASSAGE_LENGTH": 8, "VOCAB_SIZE": 256}
  status, rows = run(tmp_path, files, settings, "--passages=80_000", "--postings=800_000")
  assert status == 0
  assert list(rows) == ["train", "search: add", "search: select"]
  assert rows["train"].parameters > 50_000
  add = rows["search: add"]
  assert add.mesh == {"passages": 8}
  # A share of the postings, twice 4 bytes, and of the sums of 32 queries.
  assert add.arguments >= 2 * 4 * 800_000 // 8 + 4 * 32 * 80_000 // 8
  assert add.collectives == {}  # each device adds to sums of its own


@pytest.mark.parametrize(
  ("argv", "said"),
  [
    ([], "give --gin_file, or --passages"),
    (["--passages=0"], "at least 1"),
    (["--passages=9", "--effort=2"], "from -1 to 1"),
    (["--gin_file=gin_configs/recipes/quickstart/2_index.gin"], "neither trains nor answers"),
    ([f"--gin_file={TINY}", "--gin_file=gin_configs/runs/student.gin", f"--gin_file={EIGHT}"],
     "BATCH_SIZE"),
    ([f"--gin_file={TINY}", "--gin_file=gin_configs/runs/student.gin", f"--gin_file={EIGHT}",
      "--gin.BATCH_SIZE=6"], "cannot be split"),
    ([f"--gin_file={TINY}", "--gin_file=gin_configs/runs/student.gin",
      "--gin_file=gin_configs/hardware/v5e_16.gin", "--gin.BATCH_SIZE=16"], "needs 16 devices"),
  ],
)  # fmt: skip
def test_what_cannot_be_compiled(argv, said, capsys):
  assert launcher.main([*argv, "--topology=cpu:8"]) != 0
  message = capsys.readouterr().err.strip().splitlines()[-1]
  assert message.startswith("error: ")
  assert said in message


def test_names_of_machines():
  assert machines.parse("v5e-16") == machines.parse("v5e:4x4")
  assert machines.parse("v5p-128").chips == 64  # Google counts its cores
  assert machines.parse("cpu:8").chips == 8
  for name in machines.SLICES:
    stem = name.replace("-", "_")
    assert (gin_text.ROOT / "gin_configs" / "hardware" / f"{stem}.gin").is_file()
  assert machines.parse("h100:4x8").chips == 32
  for name in ("v5e", "v5e:", "tpu:4", "v5e-17", "v5e:0x4", "h100:2x2x8"):
    with pytest.raises(InputError, match="--topology="):
      machines.parse(name)
  with pytest.raises(InputError, match="8 CPU devices"):
    machines.devices(machines.parse("cpu:9"))


@pytest.mark.parametrize(("topology", "extra"), [("v5e-16", "compile"), ("h100:8", "compile-gpu")])
def test_a_machine_without_its_compiler_is_one_clear_error(topology, extra, monkeypatch, capsys):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
  assert launcher.main([f"--topology={topology}", "--passages=1000"]) != 0
  said = capsys.readouterr().err.strip()
  assert said.count("\n") == 0
  assert f"pip install 'kard_jax[{extra}]'" in said


@pytest.mark.parametrize(
  ("topology", "host"),
  [
    ("v5e-16", "v5e:2x2"),
    ("v5p:2x2x4", "v5p:2x2x1"),
    ("v5e-8", "v5e:2x4"),
    ("h100:4x8", "h100:8"),
    ("h100:2", "h100:2"),
    ("cpu:8", "cpu:8"),
  ],
)
def test_the_host_of_a_machine(topology, host):
  assert machines.of_host(machines.parse(topology)) == machines.parse(host)


def test_collectives_of_a_loop_count_as_often_as_it_runs():
  mesh = Mesh(np.array(jax.devices()), ("x",))

  @functools.partial(jax.shard_map, mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=False)
  def several(x):
    x = jax.lax.all_gather(x, "x", tiled=True)[: x.shape[0]]
    return jax.lax.fori_loop(0, 5, lambda _, y: jax.lax.psum(y * 2, "x"), x)

  x = jax.ShapeDtypeStruct((32, 4), jnp.float32, sharding=NamedSharding(mesh, P("x")))
  found = hlo.collectives(jax.jit(several).lower(x).compile().as_text())
  assert found == {
    "all-gather": hlo.Collective(1, 32 * 4 * 4),
    "all-reduce": hlo.Collective(5, 5 * 4 * 4 * 4),
  }


# As a TPU's compiler writes a loop: no count of its runs, a bound in its condition, a step of 2.
LOOP = """HloModule jit_f

%body (p: (bf16[8,4], u32[])) -> (bf16[8,4], u32[]) {
  %p = (bf16[8,4]{1,0:T(8,128)(2,1)}, u32[]{:T(128)}) parameter(0)
  %a = bf16[8,4]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=0
  %i = u32[]{:T(128)} get-tuple-element(%p), index=1
  %two = u32[]{:T(128)} constant(2)
  %next = u32[]{:T(128)} add(%i, %two)
  %s = (bf16[8,4]{1,0}, bf16[8,4]{1,0}, u32[]) collective-permute-start(%a), channel_id=3
  %d = bf16[8,4]{1,0} collective-permute-done(%s)
  ROOT %t = (bf16[8,4]{1,0}, u32[]) tuple(%d, /*index=1*/%next)
}

%cond (p.1: (bf16[8,4], u32[])) -> pred[] {
  %p.1 = (bf16[8,4]{1,0}, u32[]) parameter(0)
  %j = u32[]{:T(128)} get-tuple-element(%p.1), index=1
  %bound = u32[]{:T(128)} constant(7)
  ROOT %less = pred[]{:T(512)} compare(%j, %bound), direction=LT
}

ENTRY %main (x: bf16[8,4]) -> (bf16[8,4], u32[]) {
  %x = bf16[8,4]{1,0} parameter(0)
  %zero = u32[] constant(0)
  %start = (bf16[8,4]{1,0}, u32[]) tuple(%x, %zero)
  ROOT %w = (bf16[8,4]{1,0}, u32[]) while(%start), condition=%cond, body=%body
}
"""


@pytest.mark.parametrize(
  ("changed", "times"),
  [
    (("", ""), 4),
    (("constant(2)", "constant(1)"), 7),
    (("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}'), 3),
    (("%bound = u32[]{:T(128)} constant(7)", "%bound = u32[] subtract(%j, %j)"), 1),
  ],
)
def test_loops_of_a_tpu(changed, times):
  found = hlo.collectives(LOOP.replace(*changed))
  assert found == {"collective-permute": hlo.Collective(times, times * 8 * 4 * 2)}


@pytest.mark.parametrize(
  "said",
  [
    "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 22.81G of 15.75G "
    "hbm. Exceeded hbm capacity by 7.06G.",
    "Ran out of memory on HBM, the total memory required for HLO temporaries (22.81G) exceeds "
    "available HBM (15.75G).",
  ],
)
def test_what_does_not_fit_is_told_with_the_compilers_figures(said):
  class Lowered:
    def compile(self, compiler_options):
      raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {said}")

  program = ahead.Program("train", Lowered(), 11_000_000_000, 1e15)
  report, compiled = ahead.compile_program(
    program, machines.parse("v5e-16"), {"data": 1, "fsdp": 16}, "TPU v5 lite"
  )
  assert compiled is None
  assert not report.fits
  assert report.peak == round(22.81 * (1 << 30))
  assert report.seconds == pytest.approx(1e15 / (197e12 * 16 * 0.4))
  assert "no: needs 22.8 GiB of the 15.8 GiB" in ahead.table([report])
  assert ahead.from_json(ahead.to_json([report])) == [report]


@pytest.mark.parametrize(
  ("topology", "gib", "fits"),
  [("h100:8", 59, True), ("h100:8", 61, False), ("v5e-8", 17, True)],  # a TPU's has looked
)
def test_a_gpu_is_full_where_jax_takes_no_more(topology, gib, fits):
  memory = mock.Mock(  # its compiler refuses nothing
    argument_size_in_bytes=gib << 30,
    output_size_in_bytes=1 << 30,
    alias_size_in_bytes=1 << 30,
    temp_size_in_bytes=0,
    generated_code_size_in_bytes=0,
  )
  done = mock.Mock(spec=jax.stages.Compiled)
  done.memory_analysis.return_value, done.as_text.return_value = memory, ""
  lowered = mock.Mock()
  lowered.compile.return_value = done
  program = ahead.Program("train", lowered, 3_000_000_000, 1e15)
  machine = machines.parse(topology)
  report, compiled = ahead.compile_program(program, machine, {"fsdp": 8}, "NVIDIA H100 80GB HBM3")
  assert (report.fits, compiled is not None) == (fits, fits)
  assert report.peak == gib << 30
  shown = ahead.table([report])
  assert f"| {gib}.0 GiB " in shown  # arguments are known either way
  assert ("no: needs 61.0 GiB of the 60.0 GiB that a program may use" in shown) != fits


def test_products_without_tiles_on_a_gpu_are_left_to_cublas():
  untiled = jax.errors.JaxRuntimeError("INTERNAL: Couldn't find output tile sizes that satisfy hlo")
  done = jax.jit(jnp.sin).lower(1.0).compile()
  lowered = mock.Mock()
  lowered.compile.side_effect = [untiled, done]
  program = ahead.Program("train", lowered, 1, 1.0)
  report, _ = ahead.compile_program(program, machines.parse("h100:1"), {}, "", effort=-1.0)
  assert report.fits
  first, second = (call.kwargs["compiler_options"] for call in lowered.compile.call_args_list)
  assert second == first | {"xla_gpu_enable_triton_gemm": False}
  lowered.compile.side_effect = [untiled, untiled]
  with pytest.raises(jax.errors.JaxRuntimeError, match="tile sizes"):
    ahead.compile_program(program, machines.parse("h100:1"), {}, "")


@pytest.mark.slow
def test_flan_t5_small_trains_on_two_hosts_of_gpus_and_answers_on_one(tmp_path):
  if not gpus.is_installed():
    pytest.skip("JAX's CUDA plugin is not installed: pip install 'kard_jax[compile-gpu]'")
  rows = {}
  for run in ("student", "answer"):
    shown = tmp_path / f"{run}.json"
    subprocess.run(
      [
        sys.executable, "launch/compile.py", "--gin_file=gin_configs/models/t5_1_1_small.gin",
        f"--gin_file=gin_configs/runs/{run}.gin", "--gin_file=gin_configs/hardware/gpu_hosts.gin",
        "--gin.BATCH_SIZE=32", "--gin.SCAN_LAYERS=True", "--topology=h100:2x8", "--effort=-1",
        f"--json={shown}",
      ],
      cwd=gin_text.ROOT, check=True,
    )  # fmt: skip
    rows |= {row["program"]: row for row in json.loads(shown.read_text())}
  train = rows["train"]
  assert (train["machine"], train["mesh"]) == ("h100:2x8", {"data": 2, "fsdp": 8, "tensor": 1})
  assert train["arguments"] == pytest.approx(3 * 4 * train["parameters"] / 8, rel=0.05)
  assert train["collectives"]["all-gather"]["bytes"] > 0
  assert train["seconds"] == pytest.approx(train["flops"] / (16 * 0.4 * 989e12))
  for program in ("read", "write"):
    assert rows[program]["machine"] == "h100:8"
    assert rows[program]["fits"]


def test_the_compiled_search_is_the_one_that_searches():
  names = [name for name, _ in search_xla.lower(Mesh(np.array(jax.devices()), ("d",)), 64, 640, 4)]
  assert names == ["add", "select"]


@pytest.mark.slow
def test_flan_t5_base_trains_on_v5e_16(tmp_path):
  if not importlib.util.find_spec("libtpu"):
    pytest.skip("libtpu is not installed: pip install 'kard_jax[compile]'")
  shown = tmp_path / "rows.json"
  subprocess.run(
    [
      sys.executable, "launch/compile.py", "--gin_file=gin_configs/models/t5_1_1_base.gin",
      "--gin_file=gin_configs/runs/student.gin", "--gin_file=gin_configs/hardware/v5e_16.gin",
      "--gin.BATCH_SIZE=32", "--gin.SCAN_LAYERS=True", "--topology=v5e-16", "--effort=-1",
      f"--json={shown}",
    ],
    cwd=gin_text.ROOT, check=True,
  )  # fmt: skip
  (row,) = json.loads(shown.read_text())
  assert row["fits"]
  assert row["parameters"] == 247_577_856
  # Parameters and two moments of AdamW, float32, in 16 parts that are padded to the chip's tiles.
  assert row["arguments"] == pytest.approx(3 * 4 * row["parameters"] / 16, rel=0.4)
  assert row["peak"] < 2 << 30
  assert row["collectives"]["all-gather"]["bytes"] > 0
