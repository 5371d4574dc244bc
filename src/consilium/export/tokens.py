"""The tokenizer of an expert in the files that transformers reads, which open_clip takes too."""

from __future__ import annotations

import json
from pathlib import Path

from consilium.models.encoders import quiet
from consilium.models.tokenizer import Tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, *, masked: bool) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``; ``masked``: the text tower reads an attention mask."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    definition = json.loads(tokenizer.definition)
    library = tokenizers.Tokenizer.from_str(json.dumps({**definition, "truncation": None, "padding": None}))
    with quiet():
        wrapped = PreTrainedTokenizerFast(
            tokenizer_object=library,
            pad_token=padding_token(tokenizer, library),
            model_max_length=tokenizer.context_length,
            model_input_names=["input_ids", "attention_mask"] if masked else ["input_ids"],
            padding_side="right",
            truncation_side="right",
            clean_up_tokenization_spaces=False,
        )
        wrapped.save_pretrained(folder)


def padding_token(tokenizer: Tokenizer, library: object) -> str:
    """The token that fills a batch up, a special one.

    CLIP's tokenizer fills with 0, an ordinary word; its tower stops reading at the end of the text, so that the token
    for that does as well, which transformers' own CLIP takes.
    """
    special = {
        token["id"]: token["content"] for token in json.loads(tokenizer.definition)["added_tokens"] if token["special"]
    }
    if tokenizer.pad_id in special:
        return str(special[tokenizer.pad_id])
    end = tokenizer.encode([""])[0][-1]
    return str(special.get(end) or library.id_to_token(tokenizer.pad_id))  # type: ignore[attr-defined]
