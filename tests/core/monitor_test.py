"""A run's figures: rows that a resumed run makes again are dropped, and no row is half a row."""

import json

import pytest

from kard_jax.core import monitor


def rows(folder):
  return [json.loads(line) for line in (folder / monitor.METRICS).read_text().splitlines()]


def run(folder, begin, end, log_every=1, steps=10):
  with monitor.Monitor(folder, steps, log_every) as seen:
    seen.begin(begin)
    for step in range(begin, end):
      seen.stepped(step, tokens=7)
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
