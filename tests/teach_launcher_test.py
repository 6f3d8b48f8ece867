"""launch/teach.py with an endpoint: asked, interrupted, judged by a model, and by the Batch API."""

import json

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from kard_jax import questions as questions_lib
from kard_jax.core import config, files, gin_text
from kard_jax.questions import Question
from tests import endpoint_server
from tests.convert import folders

QUESTIONS = [
  Question("q1", "Which metal?", ("iron", "tin"), 1),
  Question("q2", "Is it heavy?", ("yes", "no"), 0),
  Question("q3", "Is it light?", ("yes", "no"), 0),
]
RECIPE = gin_text.ROOT / "gin_configs/recipes/quickstart/3_teach.gin"
ENDPOINT = gin_text.ROOT / "gin_configs/runs/endpoint.gin"


@pytest.fixture(autouse=True)
def key(monkeypatch):
  monkeypatch.setenv("OPENAI_API_KEY", endpoint_server.KEY)


@pytest.fixture
def server():
  with endpoint_server.start() as running:
    yield running


@pytest.fixture
def teach(tmp_path, server):
  work = tmp_path / "work"
  questions_lib.write(work / "questions" / "train.jsonl", QUESTIONS)

  def run(*flags, gin_files=(), **macros):
    macros = {"WORKDIR": str(work), "MODEL": "m", "BASE_URL": server.url, "RATIONALES": 3} | macros
    argv = [f"--gin_file={path}" for path in (RECIPE, ENDPOINT, *gin_files)]
    argv += [f"--gin.{name}={value!r}" for name, value in macros.items()]
    return config.launch("teach", "", [*argv, *flags])

  run.work = work
  return run


def rows(work):
  return [row for _, row in files.read_jsonl(work / "rationales.jsonl")]


def test_an_endpoints_rationales_are_judged_and_counted(teach, server, capsys):
  assert teach(PRICES=(1.0, 2.0)) == 0
  found = rows(teach.work)
  assert [(row["question_id"], row["sample"]) for row in found] == [
    (question.id, sample) for question in QUESTIONS for sample in range(3)
  ]
  assert {row["teacher"] for row in found} == {"m"}
  for row in found:
    label = 1 if row["question_id"] == "q1" else 0
    assert row["kept"] == (row["stated"] == label)
    assert row["rationale"].startswith("It follows from fact")
  report = json.loads((teach.work / "rationales.counts.json").read_text())
  split = report["splits"]["train"]
  assert (split["asked"], split["answered"], split["parsed"]) == (9, 9, 9)
  assert 0 < split["kept"] == split["answer_match"] < 9
  assert report["endpoint"]["cost"] == pytest.approx(
    (report["endpoint"]["prompt_tokens"] + 2 * 90) / 1e6
  )
  out = capsys.readouterr().out
  assert "state the gold answer" in out
  assert "9 of 9 completions" in out
  prompts = server.stats()["answers"]
  assert len(prompts) == 3
  (first,) = (prompt for prompt in prompts if "Which metal?" in prompt)
  assert "(B) tin" in first
  assert first.count("Question:") == 6  # five solved examples stand before

  # More rationales: what is there is not asked again. Nor after --redo.
  assert teach(PRICES=(1.0, 2.0), RATIONALES=4) == 2
  assert teach("--redo", PRICES=(1.0, 2.0), RATIONALES=4) == 0
  assert server.stats()["within_limit"] == 12
  assert [row["rationale"] for row in rows(teach.work) if row["sample"] < 3] == [
    row["rationale"] for row in found
  ]


def test_a_dry_run_shows_a_prompt_and_asks_nothing(teach, server, capsys):
  with pytest.raises(SystemExit) as ended:
    teach(DRY_RUN=True, PRICES=(1.0, 2.0), TEACHER_GOLD=False)
  assert ended.value.code == 0
  out = capsys.readouterr().out
  assert "Which metal?" in out
  assert "The right option is" not in out
  assert "m: 9 requests, about" in out
  assert "dollars" in out
  assert server.stats()["seen"] == {}
  assert not list(teach.work.glob("*.jsonl"))
  assert not (teach.work / "teach.meta.json").exists()


def test_a_cap_keeps_what_came_and_says_so(teach, server, capsys):
  assert teach(PRICES=(0.0, 1.0), MAX_COST=45e-6, REQUEST={"max_tokens": 10}) == 0
  out = capsys.readouterr().out
  assert "is reached: no more is asked" in out
  report = json.loads((teach.work / "rationales.counts.json").read_text())
  assert 3 <= len(rows(teach.work)) == server.stats()["within_limit"] <= 4
  assert "MAX_COST" in report["endpoint"]["capped"]
  assert report["splits"]["train"]["asked"] == 9


@pytest.mark.parametrize(
  ("macros", "message"),
  [
    ({"KEEP_IF": ("gold",)}, "KEEP_IF = ('gold',): one or both"),
    ({"KEEP_IF": ("judge",)}, "add --gin_file=gin_configs/runs/judge.gin"),
    ({"TEACHER_EXEMPLARS": 9}, "TEACHER_EXEMPLARS = 9: closed_world has 5"),
    ({"BATCH": "send"}, "BATCH = 'send': one of write, submit, collect"),
    ({"KEY_VARIABLE": "NO_SUCH_KEY"}, "the environment variable NO_SUCH_KEY is not set"),
  ],
)
def test_a_mistake_is_one_line(teach, server, capsys, macros, message):
  assert teach(**macros) == 2
  error = capsys.readouterr().err
  assert message in error
  assert error.count("\n") == 1
  assert server.stats()["seen"] == {}


def test_the_batch_api_in_steps(teach, server, capsys):
  for step in ("write", "submit"):
    with pytest.raises(SystemExit):
      teach(BATCH=step)
  assert teach() == 2
  assert "would be asked twice" in capsys.readouterr().err
  assert teach(BATCH="collect") == 2
  assert "batches are not done (1 in_progress)" in capsys.readouterr().err
  assert teach(BATCH="collect") == 0
  assert len(rows(teach.work)) == 9
  assert server.stats()["within_limit"] == 0


def test_a_language_model_judges_what_states_no_gold_answer(teach, tmp_path, capsys):
  model = folders.t5(tmp_path / "t5")
  words = [
    "<pad>",
    "</s>",
    "<unk>",
    *"ABCD",
    *["It", "follows", "from", "fact", "So,", "the", "answer", "is"],
  ]
  level = models.WordLevel({word: number for number, word in enumerate(words)}, "<unk>")
  tokenizer = tokenizers.Tokenizer(level)
  tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  tokenizer.save(str(model / "tokenizer.json"))
  special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
  (model / "tokenizer_config.json").write_text(json.dumps(special))
  gin_files = [
    gin_text.ROOT / "gin_configs" / name
    for name in ("models/pretrained.gin", "hardware/cpu.gin", "runs/judge.gin")
  ]
  macros = {"PRETRAINED": str(model), "JUDGE_MODEL": str(model), "JUDGE_VOCABULARY": str(model)}
  assert teach(gin_files=gin_files, DTYPE="float32", JUDGE_LENGTH=64, **macros) == 0
  found = rows(teach.work)
  for row in found:
    label = 1 if row["question_id"] == "q1" else 0
    if row["stated"] == label:
      assert row["reason"] == "states the gold answer"
      assert "judge" not in row
    else:
      assert row["kept"] == (row["judge"]["option"] == label)
      assert 0.5 <= row["judge"]["probability"] <= 1
  assert any("judge" in row for row in found)
  assert "read by the judge" in capsys.readouterr().out
