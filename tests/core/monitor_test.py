"""A run's figures: rows that a resumed run makes again are dropped, and no row is half a row."""

import json
import os
import pty
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from kard_jax.core import gin_text, monitor, tracking
from kard_jax.core.files import InputError


def rows(folder):
  return [json.loads(line) for line in (folder / monitor.METRICS).read_text().splitlines()]


def run(folder, begin, end, log_every=1, steps=10, monitoring=None, work=None):
  with monitor.Monitor(folder, steps, log_every, monitoring) as seen:
    seen.begin(begin, work)
    for step in seen.batches(iter(range(begin, end))):
      seen.stepped(step, tokens=7, output=jnp.zeros(()) + step)
      seen.metrics(step, {"loss": 1.0 / (step + 1)})


def test_a_row_is_written_every_so_many_steps(tmp_path):
  run(tmp_path, 0, 7, log_every=3)
  assert [row["step"] for row in rows(tmp_path)] == [3, 6]
  assert rows(tmp_path)[0]["train/loss"] == pytest.approx(1 / 3)
  assert rows(tmp_path)[0]["train/tokens_per_s"] > 0
  assert any((tmp_path / "tensorboard").iterdir())


def test_a_resumed_run_writes_every_step_once(tmp_path, capsys):
  run(tmp_path, 0, 7)
  run(tmp_path, 4, 10)
  assert [row["step"] for row in rows(tmp_path)] == list(range(1, 11))
  assert "goes on at step 4 of 10" in capsys.readouterr().out


def test_a_row_that_a_kill_cut_is_dropped(tmp_path):
  run(tmp_path, 0, 3)
  path = tmp_path / monitor.METRICS
  path.write_text(path.read_text() + '{"step": 4, "train/lo')
  run(tmp_path, 4, 6)
  assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 5, 6]


def test_a_fresh_run_leaves_nothing_of_an_earlier_one(tmp_path):
  run(tmp_path, 0, 5)
  run(tmp_path, 0, 2)
  assert [row["step"] for row in rows(tmp_path)] == [1, 2]


def test_evaluations_are_shown_and_written(tmp_path, capsys):
  with monitor.Monitor(tmp_path / "student", 10, 1) as seen:
    seen.begin(0)
    seen.evaluated(5, {"loss": 0.25, "accuracy": 1.0})
  assert rows(tmp_path / "student") == [
    {"step": 5, "validation/loss": 0.25, "validation/accuracy": 1.0}
  ]
  shown = capsys.readouterr().out
  assert "student: step 5/10 validation accuracy 1.0000  loss 0.2500" in shown


class Device:
  """A chip whose peak is known, and its memory too."""

  device_kind = "TPU v5 lite"

  def __init__(self, peak):
    self._peak = peak

  def memory_stats(self):
    return {"peak_bytes_in_use": self._peak, "bytes_in_use": 1}


def test_a_row_says_how_fast_and_how_full(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "local_devices", lambda: [Device(2**30), Device(3 * 2**30)])
  clock = iter(range(1000))
  monkeypatch.setattr(monitor, "monotonic", lambda: float(next(clock)))
  with monitor.Monitor(tmp_path, 4, 2) as seen:
    seen.begin(0, lambda: 197e12 / 10)  # a tenth of a second's work
    for step in range(4):
      seen.stepped(step, tokens=100)
      seen.metrics(step, {"loss": 1.0})
  first, second = rows(tmp_path)
  assert second["train/hbm_peak_gib"] == 3
  assert second["train/compile_s"] == first["train/compile_s"] > 0
  assert second["train/tokens_per_s"] * second["train/step_s"] == pytest.approx(100)
  assert second["train/mfu"] == pytest.approx(0.1 / second["train/step_s"])
  assert 0 <= second["train/input_wait"] <= 1


def test_on_a_cpu_what_is_not_known_is_left_out(tmp_path):
  def never():
    raise AssertionError("a CPU has no known peak")

  run(tmp_path, 0, 2, work=never)
  assert set(rows(tmp_path)[1]) == {
    "step",
    *(f"train/{name}" for name in ("loss", "tokens_per_s", "step_s", "input_wait", "compile_s")),
  }


def test_compiling_is_no_part_of_the_rate(tmp_path, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(monitor, "monotonic", lambda: now[0])
  with monitor.Monitor(tmp_path, 2, 1) as seen:
    seen.begin(0)
    for step in seen.batches(iter(range(2))):
      now[0] += 60.0 if step == 0 else 0.0  # the first call compiles
      seen.stepped(step, tokens=10)
      now[0] += 2.0
      seen.metrics(step, {"loss": 1.0})
  for row in rows(tmp_path):
    assert (row["train/compile_s"], row["train/step_s"], row["train/tokens_per_s"]) == (60, 2, 5)


@pytest.mark.parametrize("begin", [0, 2])
def test_a_profile_of_some_steps(tmp_path, monkeypatch, capsys, begin):
  """It begins before step 3 is handed over and ends when step 4 is done."""
  calls = []
  monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: calls.append("start"))
  monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
  with monitor.Monitor(tmp_path, 10, 1, monitor.Monitoring(profile=(3, 4))) as seen:
    seen.begin(begin)
    for step in range(begin, 7):
      calls.append(step + 1)
      seen.stepped(step, tokens=1)
      if step > begin:  # as in training: a step's figures come when the next runs
        seen.metrics(step - 1, {"loss": 1.0})
  at = {call: index for index, call in enumerate(calls)}
  assert at["start"] == at[3] - 1
  assert at["stop"] == at[6] - 1  # step 4 is known to be done when 5 runs
  assert calls.count("start") == calls.count("stop") == 1
  assert f"profile: {tmp_path / 'profile'}" in capsys.readouterr().out


def test_a_profile_that_the_run_leaves_out_or_cuts(tmp_path, monkeypatch):
  calls = []
  monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: calls.append("start"))
  monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
  run(tmp_path, 5, 8, monitoring=monitor.Monitoring(profile=(3, 4)))  # went on behind it
  assert calls == []
  run(tmp_path, 0, 4, monitoring=monitor.Monitoring(profile=(3, 9)))
  assert calls == ["start", "stop"]


@pytest.mark.slow
def test_a_profile_has_a_trace(tmp_path):
  run(tmp_path, 0, 5, monitoring=monitor.Monitoring(profile=(2, 3)))
  names = {path.name.split(".", 1)[1] for path in (tmp_path / "profile").rglob("*.*")}
  assert any("xplane.pb" in name for name in names)
  assert list((tmp_path / "profile").rglob("perfetto_trace.json.gz"))


@pytest.mark.parametrize("steps", [(0, 3), (5, 4), (1, 2, 3)])
def test_a_profile_of_no_steps_is_an_error(steps):
  with pytest.raises(InputError, match=r"PROFILE = .* such as \(10, 13\)"):
    monitor.Monitoring(profile=steps)


class Wandb(types.ModuleType):
  """Weights & Biases as far as we use it, on no network."""

  def __init__(self):
    super().__init__("wandb")
    self.begun, self.rows, self.metrics, self.finished = [], [], [], 0

  def init(self, **arguments):
    self.begun.append(arguments)
    return self

  def define_metric(self, name, step_metric):
    self.metrics.append((name, step_metric))

  def log(self, row):
    self.rows.append(row)

  def finish(self):
    self.finished += 1


def test_weights_and_biases_get_the_same_figures(tmp_path, monkeypatch):
  wandb = Wandb()
  monkeypatch.setitem(sys.modules, "wandb", wandb)
  chosen = monitor.Monitoring(wandb="kard")
  run(tmp_path / "student", 0, 4, monitoring=chosen)
  assert wandb.rows == rows(tmp_path / "student")
  run(tmp_path / "student", 2, 6, monitoring=chosen)
  first, second = wandb.begun
  assert first["project"] == "kard"
  assert first["name"].endswith("/student")
  assert first["id"] == second["id"]  # a run that goes on
  assert second["resume"] == "allow"
  assert [row["step"] for row in wandb.rows] == [1, 2, 3, 4, 3, 4, 5, 6]
  assert wandb.metrics == [("*", "step")] * 2
  assert wandb.finished == 2
  run(tmp_path / "student", 0, 1, monitoring=chosen)
  assert wandb.begun[2]["id"] != first["id"]  # a fresh one


def test_without_the_package_a_run_does_not_begin(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(InputError, match=r"WANDB: .* pip install wandb"):
    monitor.Monitor(tmp_path, 10, 1, monitor.Monitoring(wandb="kard"))
  with pytest.raises(InputError, match="pip install wandb"):
    tracking.load()


def test_what_is_shown_decides_no_output():
  """A profile may be asked for, or another project, and the run goes on."""
  stage = ["gin_configs/recipes/quickstart/6_student_kard.gin"]
  plain = gin_text.resolve(stage).fingerprint()
  other = gin_text.resolve(stage, ["PROFILE = (10, 13)", "WANDB = 'kard'"])
  assert other.value("monitor.Monitoring.profile") == (10, 13)
  assert other.fingerprint() == plain
  assert not any("onitor" in key or key in ("PROFILE", "WANDB") for key in plain)
  assert gin_text.resolve(stage, ["STEPS = 7"]).fingerprint() != plain


TERMINAL = """
import fcntl, struct, sys, termios, time
import jax
from kard_jax.core import monitor
class Device:
  device_kind = "TPU v5 lite"
  def memory_stats(self):
    return {"peak_bytes_in_use": 12.3 * 2**30}
jax.local_devices = lambda: [Device()]
for columns in (80, 120):
  fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
  print(f"columns: {columns}")
  with monitor.Monitor(f"{sys.argv[1]}/student/kard_{columns}", 3000, 1) as seen:
    seen.begin(0, lambda: 197e12 * 0.004)
    for step in range(1234):
      seen.stepped(step, tokens=123_456)
      if step >= 1231:
        time.sleep(0.01)
        seen.metrics(step, {"loss": 1.2345})
    seen.evaluated(1234, {"loss": 1.5, "accuracy": 0.25})
"""


def on_a_terminal(program, folder):
  """What a program draws on a terminal, line by line."""
  control, terminal = pty.openpty()
  environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
  environment |= {"TERM": "xterm-256color"}
  child = subprocess.Popen(
    [sys.executable, "-c", program, str(folder)],
    stdin=terminal,
    stdout=terminal,
    stderr=subprocess.DEVNULL,  # TensorFlow's
    env=environment,
    cwd=gin_text.ROOT,
  )
  os.close(terminal)
  drawn = b""
  while piece := _read(control):
    drawn += piece
  os.close(control)
  assert child.wait() == 0, drawn.decode()
  text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode())
  return [line.rstrip() for line in re.split(r"[\r\n]+", text)]


def _read(control):
  try:
    return os.read(control, 65536)
  except OSError:  # the program has closed its end
    return b""


def test_the_lines_on_a_terminal(tmp_path):
  lines = on_a_terminal(TERMINAL, tmp_path)
  wide = lines.index("columns: 120")
  for columns, drawn in ((80, lines[:wide]), (120, lines[wide:])):
    assert max(map(len, drawn)) <= columns
    assert any(re.match(r"kard\S+ .*1234/3000 +loss 1.2345 ", line) for line in drawn), drawn
    last = [line for line in drawn if "tokens/s" in line][-1]
    speed = r"[\d,]+ tokens/s · [\d.]+ s/step · MFU [\d.]+% · input wait \d+% · HBM 12.3 GiB"
    last_one = r" · compiled in \d+ s" if columns == 120 else ""  # no figure is cut
    assert re.fullmatch(speed + last_one, last), last
    shown = f"kard_{columns}: step 1234/3000 validation accuracy 0.2500  loss 1.5000"
    assert shown in drawn


def test_in_a_log_file_lines_have_the_figures(tmp_path, monkeypatch, capsys):
  clock = iter(range(0, 100_000, 10))
  monkeypatch.setattr(monitor, "monotonic", lambda: float(next(clock)))
  with monitor.Monitor(tmp_path / "student", 3, 1) as seen:
    seen.begin(0)
    for step in range(3):
      seen.stepped(step, tokens=100)
      seen.metrics(step, {"loss": 0.5})
  line = capsys.readouterr().out.splitlines()[-1]
  assert re.match(r"student: step 3/3 loss 0.5000 \d+ tokens/s · \d+ s/step · input wait 0%", line)
