"""Tokenizers: learned the same everywhere, cut and padded as said, saved, pickled, and without threads."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilium.core.errors import BundleError, DataError
from consilium.models.tokenizer import TOKENIZER_FILE, Tokenizer, train_tokenizer
from tests.models.texts import CAPTIONS, caption_tokenizer


def words(tokenizer: Tokenizer, text: str) -> list[str]:
    vocabulary = {number: token for token, number in tokenizer._library().get_vocab().items()}
    return [vocabulary[number] for number in tokenizer.encode([text])[0]]


def test_words_become_pieces_between_the_marks_of_bert() -> None:
    learned = caption_tokenizer()
    assert words(learned, "LEFT effusion")[:2] == ["[CLS]", "left"]
    assert words(learned, "LEFT effusion")[-1] == "[SEP]"
    assert "".join(words(learned, "oedematous")[1:-1]).replace("##", "") == "oedematous"
    assert words(learned, "眼") == ["[CLS]", "[UNK]", "[SEP]"]
    assert (learned.pad_id, learned.context_length) == (0, 32)
    assert learned.vocabulary_size <= 256


def test_words_of_another_language_are_unknown() -> None:
    learned = caption_tokenizer()
    assert learned.unknown_share(CAPTIONS) == 0
    assert learned.unknown_share(["黄斑水肿"]) == 1
    known = len(learned.encode(["left"])[0]) - 2  # between the marks of BERT
    assert learned.unknown_share(["left 黄斑"]) == pytest.approx(2 / (2 + known))
    assert learned.unknown_share([]) == learned.unknown_share([""]) == 0


def test_accents_stay_and_case_does_not() -> None:
    learned = train_tokenizer(["Ödem links", "kein Odem"], vocabulary_size=256, context_length=8)
    assert learned.encode(["ÖDEM"]) == learned.encode(["ödem"]) != learned.encode(["odem"])


def test_rare_characters_are_left_out_where_there_are_more_than_the_vocabulary_holds() -> None:
    many = "".join(chr(0x4E00 + number) for number in range(500))
    learned = train_tokenizer([many, "眼眼眼 abc", "abc 眼眼眼"], vocabulary_size=256, context_length=8)
    assert learned.vocabulary_size <= 256
    assert words(learned, "眼") == ["[CLS]", "眼", "[SEP]"]
    assert words(learned, "abc")[1] != "[UNK]"


def test_the_same_texts_teach_the_same_in_every_process_and_forks_stay_silent() -> None:
    code = (
        "import os, sys\n"
        "from tests.models.texts import caption_tokenizer\n"
        "learned = caption_tokenizer()\n"
        "learned.encode(['a b'] * 1000), learned.count_cut(['a b'] * 1000)\n"
        "if os.fork() == 0: os._exit(0)\n"
        "os.wait()\n"
        "assert 'TOKENIZERS_PARALLELISM' not in os.environ\n"
        "assert not {'transformers', 'timm'} & sys.modules.keys()\n"
        "sys.stdout.write(learned.definition)\n"
    )
    for _ in range(2):
        # From 3.12 on Python itself warns of every fork of a program with threads.
        quiet = ["-W", "ignore:This process:DeprecationWarning"]
        own = {
            name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"
        }  # open_clip sets it
        run = subprocess.run([sys.executable, *quiet, "-c", code], env=own, capture_output=True, text=True, check=True)
        assert run.stdout == caption_tokenizer().definition
        assert not run.stderr


@pytest.mark.parametrize(
    ("texts", "said"),
    [([], "no training case has a text"), (["", " \n"], "no training case"), (["one"] * 3, "all 3 texts are the same")],
)
def test_texts_that_teach_nothing_are_refused(texts: list[str], said: str) -> None:
    with pytest.raises(DataError, match=f"cannot be learned: .*{said}.*task.text.name"):
        train_tokenizer(texts, vocabulary_size=256, context_length=8)


def test_long_texts_are_cut_with_their_last_mark_and_counted() -> None:
    whole, short = caption_tokenizer(), caption_tokenizer(context_length=6)
    assert [len(ids) for ids in short.encode(CAPTIONS)] == [6] * len(CAPTIONS)
    assert all(ids[-1] == 3 for ids in short.encode(CAPTIONS))
    assert (whole.count_cut(CAPTIONS), short.count_cut(CAPTIONS), short.count_cut(["left", ""])) == (0, 5, 0)


@settings(max_examples=25)
@given(st.lists(st.text(max_size=60), max_size=5))
def test_padding_keeps_the_tokens(texts: list[str]) -> None:
    learned = caption_tokenizer()
    ids = learned.encode(texts)
    padded = learned.pad(ids)
    assert padded.tokens_BT.shape == padded.attention_BT.shape == (len(texts), max(map(len, ids), default=0))
    for row, tokens, attention in zip(ids, padded.tokens_BT, padded.attention_BT, strict=True):
        assert 2 <= len(row) <= 32
        assert tokens.tolist() == row + [learned.pad_id] * (len(tokens) - len(row))
        assert attention.tolist() == [1] * len(row) + [0] * (len(tokens) - len(row))


def test_saved_pickled_and_copied_it_is_the_same(tmp_path: Path) -> None:
    learned = caption_tokenizer()
    learned.encode(CAPTIONS)
    learned.save(tmp_path)
    pickled = pickle.loads(pickle.dumps(learned))  # noqa: S301
    for other in (Tokenizer.load(tmp_path), pickled, copy.deepcopy(learned)):
        assert other == learned
        assert other.encode(CAPTIONS) == learned.encode(CAPTIONS)
    assert len(pickle.dumps(learned)) < 2 * len(learned.definition)


def test_a_damaged_file_is_a_bundle_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"tokenizer.json cannot be read .* Copy it again"):
        Tokenizer.load(tmp_path)
    (tmp_path / TOKENIZER_FILE).write_text("{", encoding="utf-8")
    with pytest.raises(BundleError, match="cannot be read"):
        Tokenizer.load(tmp_path)
    (tmp_path / TOKENIZER_FILE).write_text('{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}')
    with pytest.raises(BundleError, match="does not say how long"):
        Tokenizer.load(tmp_path)
