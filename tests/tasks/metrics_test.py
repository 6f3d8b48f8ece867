"""Metrics, alone and as SeqIO's Evaluator calls them."""

import math

import numpy as np
import seqio

from kard_jax.prompts import Prompts
from tasks import metrics, vocabularies


def test_accuracy_counts_unparsed_as_wrong():
  found = metrics.accuracy([0, 1, 2, 3], [0, 2, metrics.UNPARSED, 3])
  assert found == {"accuracy": 0.5, "unparsed": 0.25}
  assert math.isnan(metrics.accuracy([], [])["accuracy"])


def test_postprocess_reads_with_the_datasets_parser():
  example = {"label": np.int32(1), "options": np.array([b"tin", b"iron", b"", b""], object)}
  read = metrics.postprocessor(Prompts())
  assert read("It is iron.\nAnswer: B", example=example) == 1
  assert read(b"Answer: A", example=example, is_target=False) == 0
  assert read("", example=example) == metrics.UNPARSED
  assert read("Answer: C", example=example) == metrics.UNPARSED  # the padding is no option
  assert read("whatever", example=example, is_target=True) == 1
  assert metrics.postprocessor(Prompts(answer="So: {letter}"))("So: B", example=example) == 1


def test_seqios_evaluator(tiny_files, register):
  dataset = register(tiny_files)
  questions = {question.id: question for question in tiny_files.questions["validation"]}
  evaluator = seqio.Evaluator(
    dataset.task("rd"),
    seqio.EncDecFeatureConverter(pack=False),
    "validation",
    sequence_length={"inputs": 64, "targets": 32},
    async_compute_metrics=False,
  )

  def predict(dataset_, *_):  # says A, and nothing at the third example
    texts = ["Nothing." if place == 2 else "Answer: A" for place, _ in enumerate(dataset_)]
    return list(enumerate(vocabularies.encode(dataset.vocabulary, texts, 16).tolist()))

  computed, _ = evaluator.evaluate(compute_metrics=True, step=0, predict_fn=predict)
  found = computed.result() if hasattr(computed, "result") else computed
  labels = [questions[id].label for id, _ in tiny_files.kept("validation")]
  right = [label == 0 and place != 2 for place, label in enumerate(labels)]
  assert found[dataset.task("rd")] == {"accuracy": np.mean(right), "unparsed": 1 / len(labels)}
