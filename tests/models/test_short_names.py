"""Short names of text encoders, from folders as they lie on the hub; and instructions, which a Qwen3 encoder reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from consilium.models.config import SHORT_TEXTS, TextConfig
from consilium.models.text import TextEncoder, build_text, build_tokenizer
from tests.models.test_text import features
from tests.models.texts import CAPTIONS, write_encoder

SAID = SHORT_TEXTS["qwen"]["instruction"]


def write_qwen(folder: Path) -> Path:
    """A tiny Qwen3 embedding model: byte-level BPE, the end of the text as its last token, padded on the left."""
    import tokenizers

    end = "<|endoftext|>"
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.normalizer = tokenizers.normalizers.NFC()
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator([*CAPTIONS, SAID], trainer)
    library.post_processor = tokenizers.processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 0)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=library, pad_token=end, eos_token=end, padding_side="left"
    ).save_pretrained(folder)
    torch.manual_seed(2)
    config = transformers.Qwen3Config(
        vocab_size=library.get_vocab_size(), hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=256, pad_token_id=0,
    )  # fmt: skip
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of models that were carried here."""
    (tmp_path / "models").mkdir()
    monkeypatch.setenv("CONSILIUM_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.mark.parametrize("name", SHORT_TEXTS)
def test_a_short_name_loads_what_it_stands_for(name: str, hub: Path) -> None:
    meant = SHORT_TEXTS[name]
    folder = hub / meant["name"]
    theirs = write_qwen(folder) if name == "qwen" else write_encoder(folder, kind="bert")
    config = TextConfig(name=name, context_length=40 if name == "qwen" else 32)
    assert (config.name, config.pooling, config.instruction) == (
        meant["name"],
        meant["pooling"],
        meant.get("instruction"),
    )
    tokenizer = build_tokenizer(config)
    tower = build_text(config, tokenizer=tokenizer)
    assert tower.pooling == meant["pooling"]
    again = TextConfig(**{**meant, "name": str(theirs), "context_length": config.context_length})
    same = build_text(again, tokenizer=build_tokenizer(again)).eval()
    torch.testing.assert_close(
        features(tower.eval(), tokenizer, CAPTIONS), features(same, tokenizer, CAPTIONS), rtol=0, atol=0
    )


@given(
    st.sampled_from(sorted(SHORT_TEXTS)),
    st.sampled_from([None, "cls", "mean", "last_token"]),
    st.none() | st.text(min_size=1),
    st.booleans(),
)
def test_what_the_config_says_stays(name: str, pooling: Any, instruction: str | None, stated: bool) -> None:
    """Null is no statement; and a config that was written out says the same when it is read again."""
    own = {"pooling": pooling, "instruction": instruction}
    config = TextConfig(name=name, **(own if stated else {}))
    usual = SHORT_TEXTS[name]
    assert config.pooling == ((stated and pooling) or usual["pooling"])
    assert config.instruction == ((stated and instruction) or usual.get("instruction"))
    assert TextConfig(**config.model_dump()) == config


def test_names_of_other_kinds_are_no_short_names() -> None:
    assert TextConfig(kind="bundle", name="qwen").name == "qwen"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "tiny", "pretrained": False}, "tiny starts from nothing"),
        ({"kind": "bundle", "name": "runs/expert"}, "a bundle keeps its own"),
    ],
)
def test_an_instruction_that_nobody_was_taught_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TextConfig(**options, instruction="query: ")


def test_vectors_of_qwen_are_those_of_transformers(tmp_path: Path) -> None:
    """With its instruction, padded on the left as its authors do, read out at the last token."""
    folder = write_qwen(tmp_path)
    config = TextConfig(name=str(folder), pooling="last_token", instruction=SAID, context_length=128)
    tokenizer = build_tokenizer(config)
    tower = build_text(config, tokenizer=tokenizer).eval()
    model = transformers.AutoModel.from_pretrained(folder).eval()
    library = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = library([SAID + text for text in CAPTIONS], padding=True, return_tensors="pt")
    assert theirs["attention_mask"][:, 0].min() == 0  # on the left
    with torch.no_grad():
        expected_BF = model(**theirs).last_hidden_state[:, -1]
    own = [row[mask.bool()].tolist() for row, mask in zip(theirs["input_ids"], theirs["attention_mask"], strict=True)]
    assert tokenizer.encode(CAPTIONS) == own
    torch.testing.assert_close(features(tower, tokenizer, CAPTIONS), expected_BF, rtol=0, atol=1e-5)


def test_an_instruction_and_a_length_are_of_what_a_vector_is_known_by(tmp_path: Path) -> None:
    folder = write_qwen(tmp_path)
    usual = {"name": str(folder), "pooling": "last_token", "context_length": 64}
    known = []
    for more in ({}, {"instruction": "query: "}, {"context_length": 32}, {"pooling": "mean"}):
        config = TextConfig(**{**usual, **more})
        tokenizer = build_tokenizer(config)
        encoder = TextEncoder(build_text(config, tokenizer=tokenizer), config, tokenizer, lambda texts: torch.zeros(0))
        known.append(tuple(encoder.identity.items()))
    assert len(set(known)) == len(known)
