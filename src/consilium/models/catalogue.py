"""The pretrained models that recipes use, and text encoders with a short name; a test compares the list with both."""

from __future__ import annotations

from dataclasses import dataclass

from consilium.models.config import SHORT_TEXTS


@dataclass(frozen=True)
class Listed:
    """A model: its names in a config and on the hub, what it is, megabytes and licence of its weights, its recipes."""

    name: str
    repository: str
    kind: str
    megabytes: int
    license: str
    recipes: tuple[str, ...]


IMAGES, TEXTS, WHOLE = "image tower", "text tower", "images and texts"
_BERT = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
_CLIP = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
_SIGLIP = "google/siglip-base-patch16-224"
_CHINESE = "OFA-Sys/chinese-clip-vit-base-patch16"
_CLIP_B32, _SPLADE = "openai/clip-vit-base-patch32", "naver/splade-v3"
_VIT = "vit_base_patch16_224.augreg_in21k"
_SHORT = {  # about how many megabytes, and the licence on the card
    "pubmedbert": (438, "mit"),
    "sapbert": (438, "apache-2.0"),
    "biosyn": (433, "unknown"),
    "qwen": (1192, "apache-2.0"),
    "minilm": (91, "apache-2.0"),
}
_ROWS: tuple[tuple[str, str, str, int, str, tuple[str, ...]], ...] = (
    ("resnet50", "timm/resnet50.a1_in1k", IMAGES, 102, "apache-2.0", ("router", "mixture", "figure_modality_tree")),
    ("vit_b_16", "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k", IMAGES, 346, "apache-2.0", ("frozen_probe",)),
    ("densenet121", "timm/densenet121.ra_in1k", IMAGES, 32, "apache-2.0", ("multi_label",)),
    ("tf_efficientnet_lite0", "timm/tf_efficientnet_lite0.in1k", IMAGES, 19, "apache-2.0", ("unseen_sources",)),
    (_VIT, f"timm/{_VIT}", IMAGES, 410, "apache-2.0", ("clip", "fuse", "lora")),
    (_BERT, _BERT, TEXTS, 440, "mit", ("clip", "fuse", "lora")),
    (_CLIP_B32, _CLIP_B32, IMAGES, 605, "unknown", ("clip_splade",)),
    (_SPLADE, _SPLADE, TEXTS, 438, "cc-by-nc-sa-4.0", ("clip_splade",)),
    (f"hf-hub:{_CLIP}", _CLIP, WHOLE, 784, "mit", ("biomedclip",)),
    (_CHINESE, _CHINESE, WHOLE, 753, "unknown", ("retclip",)),
    (_SIGLIP, _SIGLIP, WHOLE, 813, "apache-2.0", ("siglip",)),
    *((name, SHORT_TEXTS[name]["name"], TEXTS, *_SHORT[name], ()) for name in SHORT_TEXTS),
)
CATALOGUE = tuple(Listed(*row) for row in _ROWS)
