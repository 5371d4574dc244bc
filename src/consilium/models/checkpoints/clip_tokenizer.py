"""Tokenizers of models that bring no ``tokenizer.json``, of CLIP and SigLIP, and what SigLIP does to texts before."""

from __future__ import annotations

import gzip
import json
import shutil
import string
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from consilium.core.errors import ConfigError, WeightsError

_START, _END = "<start_of_text>", "<end_of_text>"
_MERGES = 49152 - 256 - 2  # of which the vocabulary has each, beside bytes at the end and inside of a word, and marks
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def clip_tokenizer() -> str:
    """The text of a ``tokenizer.json`` with the vocabulary of CLIP, which the package open_clip brings."""
    try:
        from open_clip.tokenizer import bytes_to_unicode, default_bpe
    except ImportError as error:
        raise ConfigError(
            "the model brings no tokenizer, so that it takes CLIP's, which lies in the package open_clip. Install it: "
            "pip install 'consilium[clip]'; or put a tokenizer.json beside the weights."
        ) from error
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : _MERGES + 1]
    merges = [(first, second) for first, second in map(str.split, lines)]
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges), _START, _END]
    vocabulary = {word: number for number, word in enumerate(words)}
    library = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>"))
    library.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Lowercase()]
    )
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.add_special_tokens([_START, _END])
    ends = [(mark, vocabulary[mark]) for mark in (_START, _END)]
    library.post_processor = processors.TemplateProcessing(single=f"{_START} $A {_END}", special_tokens=ends)
    text: str = library.to_str()
    return text


def sentence_pieces(file: Path) -> str:
    """The text of a ``tokenizer.json`` with the vocabulary of a SentencePiece file, as T5 and SigLIP read it.

    It takes the packages sentencepiece and protobuf; a file that they cannot read is a WeightsError.
    """
    try:
        for needed in ("sentencepiece", "google.protobuf"):
            import_module(needed)
    except ImportError as error:
        raise ConfigError(
            f"the tokenizer is {file.name}, which takes the packages sentencepiece and protobuf. Install them: "
            "pip install 'consilium[clip]'; or put a tokenizer.json beside it."
        ) from error
    from transformers import T5TokenizerFast

    with TemporaryDirectory() as folder:  # of its own, for what lies beside the file is meant for another class
        shutil.copy(file, folder)
        try:
            found = T5TokenizerFast.from_pretrained(folder, extra_ids=0, pad_token="</s>")
        except Exception as error:  # neither library has an error of its own for a damaged file
            raise WeightsError(f"{file} is no SentencePiece model ({error}). Copy it again.") from error
    text: str = found.backend_tokenizer.to_str()
    return text


def canonical(definition: str) -> str:
    """A ``tokenizer.json`` that lowers letters, takes out ASCII punctuation and joins white space before all else.

    So the reference code of SigLIP prepares a text (Zhai et al., 2023), outside of its tokenizer.
    """
    marks = "".join(rf"\{mark}" for mark in string.punctuation)
    return _first(
        definition,
        {"type": "Lowercase"},
        {"type": "Replace", "pattern": {"Regex": f"[{marks}]"}, "content": ""},
        {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
        {"type": "Strip", "strip_left": True, "strip_right": True},
    )


def lowered(definition: str) -> str:
    """A ``tokenizer.json`` that lowers letters before all else, as SigLIP2 was trained (Tschannen et al., 2025)."""
    return _first(definition, {"type": "Lowercase"})


def _first(definition: str, *before: dict[str, Any]) -> str:
    """A ``tokenizer.json`` that does something to texts before its own normalizer."""
    described: dict[str, Any] = json.loads(definition)
    own = described.get("normalizer")
    described["normalizer"] = {"type": "Sequence", "normalizers": [*before, *([own] if own else [])]}
    return json.dumps(described, ensure_ascii=False)


def with_zero_at_the_end(definition: str) -> str:
    """A ``tokenizer.json`` that ends a text with the token 0 in the place of its own end, as CLIPA was trained."""
    described: dict[str, Any] = json.loads(definition)
    after = described.get("post_processor") or {}
    if after.get("type") == "BertProcessing":
        after["sep"][1] = 0
    elif after.get("type") == "TemplateProcessing":
        last = next((part["SpecialToken"]["id"] for part in after["single"][::-1] if "SpecialToken" in part), None)
        if last is not None:
            after["special_tokens"][last]["ids"] = [0]
    return json.dumps(described, ensure_ascii=False)
