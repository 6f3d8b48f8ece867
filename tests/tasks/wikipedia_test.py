"""Wikipedia from TFDS, through its own API: small datasets of the same names, made on the spot."""

import subprocess
import sys

import pytest
import tensorflow_datasets as tfds

from kard_jax.core.files import InputError
from kard_jax.retrieval import passages as passages_lib
from kard_jax.retrieval.passages import Passage
from tasks import wikipedia

WIKI40B = (
  "\n_START_ARTICLE_\n{title}\n_START_SECTION_\nHistory\n_START_PARAGRAPH_\nOnce._NEWLINE_Twice."
  "\n_START_SECTION_\nToday\n_START_PARAGRAPH_\nNow {title}, a _START_ in the text.\n"
)


def prepare(data_dir, name, config, version, splits, file_format="tfrecord", shard_size=100):
  """Writes a dataset under the name of a real one: {split: [example]}."""
  folder = data_dir / name / config / version
  folder.mkdir(parents=True)
  fields = dict.fromkeys(next(iter(splits.values()))[0], tfds.features.Text())
  info = tfds.core.DatasetInfo(
    builder=tfds.core.dataset_info.DatasetIdentity(
      name=name,
      version=tfds.core.utils.Version(version),
      data_dir=str(folder),
      module_name=__name__,
      config_name=config,
    ),
    features=tfds.features.FeaturesDict(fields),
  )
  writer = tfds.core.SequentialWriter(info, shard_size, file_format=file_format)
  writer.initialize_splits(list(splits))
  for split, examples in splits.items():
    writer.add_examples({split: examples})
  writer.close_all()
  return data_dir


def articles(count):
  return [{"title": f"Title {n}", "text": f"Text of {n}.\n\nMore é."} for n in range(count)]


@pytest.fixture(scope="module", params=["tfrecord", "array_record"])
def prepared(request, tmp_path_factory):
  return prepare(
    tmp_path_factory.mktemp("tfds"),
    "wikipedia",
    "20230601.en",
    "1.0.0",
    {"train": articles(40)},
    request.param,
    shard_size=17,
  )


NAME = "tfds:wikipedia/20230601.en"


def test_articles(prepared):
  found = list(wikipedia.read(NAME, data_dir=prepared))
  assert [passage.id for passage in found] == [f"20230601.en-{n}" for n in range(40)]
  assert [(p.title, p.text) for p in found] == [(a["title"], a["text"]) for a in articles(40)]
  assert found == list(wikipedia.read(f"{NAME}:1.0.0", data_dir=prepared))


def test_a_part_has_the_ids_of_the_whole(prepared):
  found = list(wikipedia.read(NAME, data_dir=prepared))
  parts = [wikipedia.read(NAME, data_dir=prepared, split=f"train[{p}]") for p in (":30%", "30%:")]
  assert [list(part) for part in parts] == [found[:12], found[12:]]


def test_cut_and_write(prepared, tmp_path):
  passages_lib.write(wikipedia.read(NAME, data_dir=prepared, words=3), tmp_path / "p")
  stored = passages_lib.Passages(tmp_path / "p")
  first = next(iter(wikipedia.read(NAME, data_dir=prepared)))
  assert len(stored) == 80
  assert stored.many([0, 1]) == [
    Passage("20230601.en-0-0", first.title, " ".join(first.text.split()[:3])),
    Passage("20230601.en-0-1", first.title, "More é."),
  ]


def test_wiki40b_is_parted(tmp_path):
  splits = {
    split: [
      {
        "text": WIKI40B.format(title=f"{split} {n}"),
        "version_id": str(n),
        "wikidata_id": f"Q{n}",
      }
      for n in range(count)
    ]
    for split, count in (("test", 2), ("train", 3), ("validation", 1))
  }
  splits["train"].append({"text": "\n_START_ARTICLE_\nE\n", "version_id": "", "wikidata_id": ""})
  prepare(tmp_path, "wiki40b", "en", "1.3.0", splits)
  found = {p.title: p for p in wikipedia.read("tfds:wiki40b/en", data_dir=tmp_path)}
  assert set(found) == {"train 0", "train 1", "train 2", "test 0", "test 1", "validation 0"}
  assert found["train 1"].text == (
    "History\nOnce.\nTwice.\nToday\nNow train 1, a _START_ in the text."
  )
  # An article without text is passed over, but counted; training articles come first.
  ids = {title: int(passage.id.removeprefix("en-")) for title, passage in found.items()}
  assert {ids[f"train {n}"] for n in range(3)} < set(range(4))
  assert {ids["test 0"], ids["test 1"], ids["validation 0"]} == {4, 5, 6}
  only = [p.id for p in wikipedia.read("tfds:wiki40b/en", data_dir=tmp_path, split="validation")]
  assert only == ["en-6"]


@pytest.mark.parametrize(
  ("name", "message"),
  [
    (
      "tfds:wikipedia/20230601.de",
      r"not prepared in .*20230601\.de.*`tfds build wikipedia/2023060",
    ),
    ("tfds:wikipedia/1999.xx", r"^tfds:wikipedia/1999\.xx: TFDS has no such dataset"),
    ("tfds:nosuch", r"^tfds:nosuch: TFDS has no such dataset"),
    ("tfds:wikipedia/20230601.en:9.9.9", r"9\.9\.9: TFDS has no such dataset"),
    ("tfds:", r"^tfds:: TFDS has no such dataset"),
  ],
)
def test_what_is_not_there_is_named_at_once(prepared, name, message):
  with pytest.raises(InputError, match=message) as caught:
    wikipedia.read(name, data_dir=prepared)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("split", ["test", "train[", "train[:200%]", ""])
def test_a_wrong_split_is_named_at_once(prepared, split):
  with pytest.raises(InputError, match=r"tfds:wikipedia.*no such split"):
    wikipedia.read(NAME, data_dir=prepared, split=split)


def test_a_dataset_without_text(tmp_path):
  prepare(tmp_path, "no_code_of_this", "en", "1.0.0", {"train": [{"label": "a"}]})
  with pytest.raises(InputError, match="no feature 'text', but label"):
    wikipedia.read("tfds:no_code_of_this/en", data_dir=tmp_path)


def test_fingerprint(prepared):
  found = wikipedia.fingerprint(NAME, prepared)
  assert found["name"] == "wikipedia/20230601.en/1.0.0"
  assert found["splits"] == {"train": 40}


def test_importing_it_starts_no_tensorflow():
  code = "import sys, tasks.wikipedia; sys.exit('tensorflow' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
