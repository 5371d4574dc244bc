"""The pretrained models that recipes use; a test compares the list with the recipes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Listed:
    """A model: its name in a config, what it is, megabytes of its weights, their licence, and the recipes with it."""

    name: str
    kind: str
    megabytes: int
    license: str
    recipes: tuple[str, ...]


IMAGES, TEXTS, WHOLE = "image tower", "text tower", "images and texts"
_ROWS = (
    ("resnet50", IMAGES, 102, "apache-2.0", ("router", "mixture", "figure_modality_tree")),
    ("vit_b_16", IMAGES, 346, "apache-2.0", ("frozen_probe",)),
    ("densenet121", IMAGES, 32, "apache-2.0", ("multi_label",)),
    ("tf_efficientnet_lite0", IMAGES, 19, "apache-2.0", ("unseen_sources",)),
    ("vit_base_patch16_224.augreg_in21k", IMAGES, 410, "apache-2.0", ("clip", "lora")),
    ("microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract", TEXTS, 440, "mit", ("clip", "lora")),
    ("hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", WHOLE, 784, "mit", ("biomedclip",)),
    ("google/siglip-base-patch16-224", WHOLE, 813, "apache-2.0", ("siglip",)),
)
CATALOGUE = tuple(Listed(*row) for row in _ROWS)
