"""Text encoders in the hub's own format, tiny and random, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from consilium.models.tokenizer import Tokenizer, train_tokenizer

CAPTIONS = [
    "Normal chest radiograph, no effusion.",
    "Left pleural effusion with atelectasis.",
    "MRI of the brain: small lesion in the left lobe.",
    "Fundus photograph with macular oedema",
    "CT, axial: no pathological finding",
]
TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}


def caption_tokenizer(context_length: int = 32) -> Tokenizer:
    return train_tokenizer(CAPTIONS, vocabulary_size=256, context_length=context_length)


def write_encoder(
    folder: Path,
    *,
    kind: str = "bert",
    head: str = "AutoModel",
    vocabulary: int = 256,
    pad_id: int = 0,
    **options: Any,
) -> Path:
    """A folder as it would lie on the hub: config, weights, and a WordPiece tokenizer."""
    import tokenizers
    import transformers

    torch.manual_seed(1)
    special = {"pad_token_id": pad_id, "bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
    config = transformers.AutoConfig.for_model(kind, **{**TINY, "vocab_size": vocabulary, **special, **options})
    getattr(transformers, head).from_config(config).save_pretrained(folder)
    tokens = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    library = tokenizers.Tokenizer.from_str(caption_tokenizer().definition)
    transformers.PreTrainedTokenizerFast(tokenizer_object=library, **tokens).save_pretrained(folder)
    return folder
