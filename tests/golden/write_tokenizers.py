"""Writes tokenizers.json.gz: small tokenizers of every kind, and what transformers makes of texts.

Each tokenizer is trained here, on files of this repository, and put into a folder with the files
that such models have; ids and texts are AutoTokenizer's. Needs transformers, tokenizers and
sentencepiece:
  python tests/golden/write_tokenizers.py
"""

import base64
import gzip
import io
import json
import pathlib
import tempfile

import sentencepiece
import transformers
from tokenizers import (
  AddedToken,
  Regex,
  Tokenizer,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
CORPUS = [
  line
  for name in ("LICENSE", "tests/golden/lucene_texts.txt")
  for line in (ROOT / name).read_text().splitlines()
]
TEXTS = [
  "",
  "The mines of Bakori give tin.",
  "Which metal?\nOptions: (A) tin (B) iron\nAnswer: B",
  " leading,  double   spaces and\ttabs \n\n end ",
  "don't can't I'll we've 12345 3.14 __________",
  "Caf\u00e9 cafe\u0301 na\u00efve \u00dcber stra\u00dfe",
  "\u6f22\u5b57 \u304b\u306a \U0001f642 \u0628 \u200b zero",
  "x </s> y <s>z <|endoftext|> [SEP] <unk> <pad> <|im_end|>w <extra_id_0>, <extra_id_1>",
  "A.B , c ! d ? e 's",
]
LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")


def byte_pairs(specials, size=340, words=None, digits=False, **model):
  """Byte pairs over bytes, as GPT-2; `words` is another way to find words."""
  tokenizer = Tokenizer(models.BPE(**model))
  steps = [pre_tokenizers.Split(Regex(words), "isolated")] if words else []
  steps += [pre_tokenizers.Digits(individual_digits=True)] if digits else []
  steps += [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not words)]
  tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
  trainer = trainers.BpeTrainer(
    vocab_size=size,
    special_tokens=specials,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(CORPUS, trainer)
  return tokenizer


def llama2():
  """Byte pairs over characters with bytes to fall back to, spaces spelled out."""
  specials = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
  tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
  tokenizer.normalizer = normalizers.Sequence(
    [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
  )
  trainer = trainers.BpeTrainer(vocab_size=430, special_tokens=specials, show_progress=False)
  tokenizer.train_from_iterator([line for line in CORPUS if line.isascii()], trainer)
  data = json.loads(tokenizer.to_str())
  data["added_tokens"] = [
    token | {"special": True, "normalized": False}
    for token in data["added_tokens"]
    if not token["content"].startswith("<0x")
  ]
  tokenizer = Tokenizer.from_str(json.dumps(data))
  tokenizer.decoder = decoders.Sequence(
    [
      decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
      decoders.Strip(" ", 1, 0),
    ]
  )  # fmt: skip
  tokenizer.post_processor = processors.TemplateProcessing(
    single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
  )
  return tokenizer


def bert():
  """Word pieces."""
  tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
  tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.decoder = decoders.WordPiece(prefix="##")
  specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=specials, show_progress=False)
  tokenizer.train_from_iterator(CORPUS, trainer)
  tokenizer.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]",
    pair="[CLS] $A [SEP] $B:1 [SEP]:1",
    special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
  )
  return tokenizer


def sentence_pieces(**settings):
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([line for line in CORPUS if line.strip() and line.isascii()]),
    model_writer=model,
    hard_vocab_limit=False,
    minloglevel=2,
    num_threads=1,
    **settings,
  )
  return model.getvalue()


def llama_sentence_pieces():
  return sentence_pieces(
    model_type="bpe",
    vocab_size=430,
    byte_fallback=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    split_digits=True,
    character_coverage=0.995,
  )


def t5_sentence_pieces():
  return sentence_pieces(
    normalization_rule_name="identity", vocab_size=200, pad_id=0, eos_id=1, unk_id=2, bos_id=-1
  )


def added(tokens):
  """`added_tokens_decoder` of a tokenizer_config.json."""
  flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
  return {str(id): {"content": text, **flags, "special": special} for id, text, special in tokens}


def folders():
  """Kind -> its files."""
  end = "<|endoftext|>"
  gpt2 = byte_pairs([end])
  yield (
    "gpt2",
    {
      "tokenizer.json": gpt2.to_str(),
      "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024},
      "config.json": {"model_type": "gpt2", "vocab_size": 340, "eos_token_id": 0},
    },
  )
  yield "gpt2_files", {**merges_of(gpt2), "config.json": {"model_type": "gpt2"}}
  opt = byte_pairs(["<s>", "<pad>", "</s>", "<unk>"])
  token = lambda text: {"__type": "AddedToken", "content": text, **dict.fromkeys(
    ("lstrip", "rstrip", "single_word"), False), "normalized": True}  # fmt: skip
  yield "opt", {
    **merges_of(opt),
    "tokenizer_config.json": {
      "errors": "replace", "unk_token": token("</s>"), "bos_token": token("</s>"),
      "eos_token": token("</s>"), "pad_token": token("<pad>"), "add_prefix_space": False,
      "add_bos_token": True, "tokenizer_class": "GPT2Tokenizer",
    },
    "special_tokens_map.json": {
      "bos_token": token("</s>"), "eos_token": token("</s>"), "unk_token": token("</s>"),
      "pad_token": "<pad>",
    },
    "config.json": {"model_type": "opt", "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2},
  }  # fmt: skip
  llama3 = byte_pairs([], 330, LLAMA3, ignore_merges=True)
  llama3.add_special_tokens(
    [AddedToken(text, special=True) for text in
     ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")]
  )  # fmt: skip
  llama3.post_processor = processors.Sequence(
    [
      processors.ByteLevel(trim_offsets=True),
      processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
        special_tokens=[("<|begin_of_text|>", 330)],
      ),
    ]
  )
  yield "llama3", {
    "tokenizer.json": llama3.to_str(),
    "tokenizer_config.json": {
      "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>",
      "eos_token": "<|eot_id|>", "clean_up_tokenization_spaces": True,
      "added_tokens_decoder": added([(330, "<|begin_of_text|>", True),
                                     (331, "<|end_of_text|>", True), (332, "<|eot_id|>", True)]),
    },
    "special_tokens_map.json": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "generation_config.json": {"bos_token_id": 330, "eos_token_id": [331, 332]},
    "config.json": {"model_type": "llama"},
  }  # fmt: skip
  for kind, config in (
    ("llama2", {"add_bos_token": True, "add_eos_token": False, "legacy": False}),
    ("llama2_eos", {"add_bos_token": True, "add_eos_token": True, "pad_token": "<unk>"}),
    ("llama2_plain", None),
  ):
    files = {
      "tokenizer.json": llama2().to_str(),
      "config.json": {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2},
    }
    if config is not None:
      names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
      files["tokenizer_config.json"] = {"tokenizer_class": "LlamaTokenizer"} | names | config
    yield kind, files
  yield "llama2_model", {
    "tokenizer.model": llama_sentence_pieces(),
    "tokenizer_config.json": {
      "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False,
      "bos_token": token("<s>"), "eos_token": token("</s>"), "unk_token": token("<unk>"),
      "pad_token": None, "legacy": False, "clean_up_tokenization_spaces": False,
    },
    "config.json": {"model_type": "llama"},
  }  # fmt: skip
  yield (
    "llama2_model_alone",
    {
      "tokenizer.model": llama_sentence_pieces(),
      "config.json": {"model_type": "llama"},
    },
  )
  qwen2 = byte_pairs([], 330, QWEN2)
  qwen2.normalizer = normalizers.NFC()
  specials = [end, "<|im_start|>", "<|im_end|>"]
  qwen2.add_special_tokens([AddedToken(text, special=True) for text in specials])
  qwen2_config = {
    "tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False, "add_prefix_space": False,
    "bos_token": None, "eos_token": "<|im_end|>", "pad_token": end, "unk_token": None,
    "added_tokens_decoder": added([(330 + i, text, True) for i, text in enumerate(specials)]),
    "additional_special_tokens": specials[1:],
  }  # fmt: skip
  config = {"model_type": "qwen2"}
  yield "qwen2", {
    "tokenizer.json": qwen2.to_str(), "tokenizer_config.json": qwen2_config, "config.json": config,
  }  # fmt: skip
  yield "qwen2_files", {
    **merges_of(qwen2), "tokenizer_config.json": qwen2_config, "config.json": config,
  }  # fmt: skip
  smollm = byte_pairs([end, "<|im_start|>", "<|im_end|>"], digits=True)
  yield "smollm", {
    "tokenizer.json": smollm.to_str(),
    "tokenizer_config.json": {
      "tokenizer_class": "GPT2Tokenizer", "bos_token": end, "eos_token": end, "unk_token": end,
      "add_prefix_space": False, "clean_up_tokenization_spaces": False,
    },
    "config.json": {"model_type": "llama"},
  }  # fmt: skip
  bert_config = {"do_lower_case": True, "tokenizer_class": "BertTokenizer"}
  pieces = bert()
  vocab = sorted(pieces.get_vocab().items(), key=lambda item: item[1])
  yield (
    "bert",
    {
      "tokenizer.json": pieces.to_str(),
      "tokenizer_config.json": bert_config | {"clean_up_tokenization_spaces": True},
      "config.json": {"model_type": "bert"},
    },
  )
  yield (
    "bert_files",
    {
      "vocab.txt": "".join(f"{text}\n" for text, _ in vocab),
      "tokenizer_config.json": {"do_lower_case": False, "strip_accents": True},
      "config.json": {"model_type": "bert"},
    },
  )
  t5_config = {
    "tokenizer_class": "T5Tokenizer", "extra_ids": 100, "eos_token": "</s>",
    "unk_token": "<unk>", "pad_token": "<pad>",
    "additional_special_tokens": [f"<extra_id_{i}>" for i in range(100)],
  }  # fmt: skip
  yield (
    "t5_model",
    {
      "spiece.model": t5_sentence_pieces(),
      "tokenizer_config.json": t5_config,
      "config.json": {"model_type": "t5"},
    },
  )
  with tempfile.TemporaryDirectory() as folder:
    place = pathlib.Path(folder)
    (place / "spiece.model").write_bytes(t5_sentence_pieces())
    (place / "config.json").write_text('{"model_type": "t5"}')
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(place / "saved")
    yield (
      "t5",
      {
        "tokenizer.json": (place / "saved/tokenizer.json").read_text(),
        "tokenizer_config.json": json.loads((place / "saved/tokenizer_config.json").read_text()),
        "config.json": {"model_type": "t5"},
      },
    )


def merges_of(tokenizer):
  """vocab.json and merges.txt."""
  model = json.loads(tokenizer.to_str())["model"]
  merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
  return {"vocab.json": model["vocab"], "merges.txt": "#version: 0.2\n" + "\n".join(merges) + "\n"}


def outcome(folder):
  """What transformers makes of the texts."""
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  whole = [tokenizer(text)["input_ids"] for text in TEXTS]
  bare = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
  return {
    "class": type(tokenizer).__name__,
    "whole": whole,
    "bare": bare,
    "decoded": [tokenizer.decode(ids, skip_special_tokens=True) for ids in bare],
    "special": {
      name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad", "sep")
    },
    "size": max(tokenizer.get_vocab().values()) + 1,
  }


def main():
  kinds = {}
  for kind, files in folders():
    with tempfile.TemporaryDirectory() as folder:
      stored = {}
      for name, value in files.items():
        data = value if isinstance(value, bytes) else (
          value if isinstance(value, str) else json.dumps(value)
        ).encode()  # fmt: skip
        (pathlib.Path(folder) / name).write_bytes(data)
        stored[name] = base64.b64encode(data).decode()
      kinds[kind] = {"files": stored, **outcome(folder)}
  text = json.dumps({"texts": TEXTS, "kinds": kinds})
  target = HERE / "tokenizers.json.gz"
  target.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
  print(target.stat().st_size, {kind: one["class"] for kind, one in kinds.items()})


if __name__ == "__main__":
  main()
