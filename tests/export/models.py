"""Bundles of every kind of model, tiny, random and without a training, for tests of what leaves the house."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import transformers

from consilium.bundle import save_bundle
from consilium.core.answers import Calibration
from consilium.core.config import build
from consilium.core.licenses import License
from consilium.data.config import ImageConfig
from consilium.evaluation.config import AveragingConfig
from consilium.experiment import Experiment
from consilium.manifest import new_manifest
from consilium.session.origin import with_start
from consilium.tasks.align.family import FAMILY as ALIGN
from consilium.tasks.align.family import _tokenizer
from consilium.tasks.align.knowledge import AlignKnowledge
from consilium.tasks.answers.targets import LabelKnowledge
from consilium.tasks.classify.config import ClassifyConfig
from consilium.tasks.classify.family import FAMILY as CLASSIFY
from tests.models.checkpoints.writers import (
    biomed_open,
    chinese_hf,
    clip_hf,
    clip_open,
    dual_hf,
    mobileclip_open,
    shaken,
    siglip_hf,
    siglip_i18n_open,
    siglip_open,
)
from tests.models.texts import CAPTIONS, write_encoder

IMAGE = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic"}
LABELS = ("ct", "mri", "xray")
TREE = ("ct", "mri", "mri.t1", "mri.t2")
ROOT = {"root": 1.7}
LICENSE = License(source="tower", name="apache-2.0", read_from="its card")


def write(folder: Path, section: Any, knowledge: Any, task: Any, image: ImageConfig) -> Path:
    """A bundle without a run."""
    manifest = new_manifest(
        section,
        knowledge,
        name="tiny",
        image=image,
        looks=AveragingConfig(),
        seed=0,
        data_fingerprint="0",
        metrics={},
        licenses=[LICENSE],
    )
    folder.mkdir(parents=True)
    save_bundle(folder, manifest=manifest, task=task)
    return folder


def expert(folder: Path, task: Mapping[str, Any], *, image: Mapping[str, Any] | None = None) -> Path:
    """An expert of a ``task`` section, with random weights in all that training would have changed."""
    tree = {
        "name": "tiny",
        "task": {"kind": "align", **task},
        "data": {"sources": [{"kind": "jsonl", "name": "pairs", "path": "none"}], "image": dict(image or {})},
    }
    started, _ = with_start(build(Experiment, tree, origin="tests"))
    section: Any = started.task
    tokenizer = _tokenizer(section.text, section.model, tuple(CAPTIONS) if section.text.from_scratch else ())
    knowledge = AlignKnowledge(training_cases=1, tokenizer=tokenizer.definition)
    built = ALIGN.build(section, knowledge, image=started.data.image, members={}, weights=True).eval()
    for tower in (built.image_projection, built.text_projection):
        shaken(tower)
    shaken(built.vision)
    return write(folder, section, ALIGN.settle(section, built, knowledge, {}).knowledge, built, started.data.image)


def whole(form: Callable[[Path], Any], *, size: int = 32) -> Callable[[Path], Path]:
    """An expert that began with a whole pretrained model."""

    def make(folder: Path) -> Path:
        return expert(folder / "bundle", {"model": str(form(folder / "start").folder)}, image={"size": [size, size]})

    return make


def towers(
    *,
    vision: str = "test_vit",
    size: int = 32,
    pooling: str = "default",
    text: str = "tiny",
    read: str = "cls",
    embedding_size: int = 16,
    words: Mapping[str, Any] = MappingProxyType({}),
    **task: Any,
) -> Callable[[Path], Path]:
    """An expert of an image tower of timm, or of ViT of transformers, and a text encoder: ``tiny`` or of a kind."""

    def make(folder: Path) -> Path:
        encoder: dict[str, Any] = {"name": "tiny", "pretrained": False, "vocabulary_size": 256}
        if text != "tiny":
            encoder = {"name": str(write_encoder(folder / "text", kind=text, **words))}
        images: dict[str, Any] = {"name": vision, "pretrained": False}
        if vision == "vit":
            images = {"kind": "hf", "name": str(hub_vit(folder / "vit"))}
        section = {
            "vision": {**images, "pooling": pooling},
            "text": {**encoder, "context_length": 16, "pooling": read},
            "embedding_size": embedding_size,
            **task,
        }
        return expert(folder / "bundle", section, image={**IMAGE, "size": [size, size]})

    return make


def hub_vit(folder: Path) -> Path:
    """A ViT of transformers without a pooler, as ``task.vision.kind: hf`` reads it."""
    config = transformers.ViTConfig(
        hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=16
    )
    shaken(transformers.ViTModel(config, add_pooling_layer=False)).save_pretrained(folder)
    return folder


def classifier(
    *,
    vision: str = "test_resnet",
    labels: Sequence[str] = LABELS,
    temperatures: Mapping[str, float] = ROOT,
    size: int = 32,
    **task: Any,
) -> Callable[[Path], Path]:
    """A classifier, by default of images of 32 pixels."""

    def make(folder: Path) -> Path:
        tower: dict[str, Any] = {"name": vision, "pretrained": False}
        if vision == "vit":
            tower = {"kind": "hf", "name": str(hub_vit(folder / "vit")), "pooling": "default"}
        section = build(ClassifyConfig, {"vision": tower, **task}, origin="tests")
        knowledge = LabelKnowledge(
            labels=list(labels),
            nested=section.tree.nested,
            class_counts=[1] * len(labels),
            training_cases=4,
            calibration=Calibration(temperatures=dict(temperatures), thresholds=[0.4] if temperatures else []),
        )
        image = ImageConfig.model_validate({**IMAGE, "size": (size, size)})
        built = CLASSIFY.build(section, knowledge, image=image, members={}, weights=True).eval()
        shaken(built)
        settled = knowledge.model_copy(update={"tower": built.tower.layout})  # type: ignore[attr-defined]
        return write(folder / "bundle", section, settled, built, image)

    return make


MODELS: dict[str, Callable[[Path], Path]] = {  # by the rows of the table in docs/export.md
    "CLIP of open_clip": whole(clip_open),
    "CLIP of transformers": whole(clip_hf),
    "Chinese-CLIP of transformers": whole(chinese_hf),
    "SigLIP of open_clip": whole(siglip_open, size=160),
    "SigLIP of open_clip without a projection of texts": whole(siglip_i18n_open, size=160),
    "MobileCLIP of open_clip": whole(mobileclip_open, size=160),
    "SigLIP of transformers": whole(siglip_hf),
    "BiomedCLIP, whose texts have two layers": whole(biomed_open, size=160),
    "dual encoder of transformers": whole(dual_hf),
    "tower of timm, texts by `pooler`": towers(text="bert", read="pooler", size=160),
    "tower of timm, texts by `cls` or `mean`": towers(size=160),
    "the same, transformer at another size than its own": towers(),
    "the same, `task.projection.kind: mlp`": towers(size=160, projection={"kind": "mlp"}, embedding_size=32),
    "the same, `task.projection.bias: true`": towers(size=160, projection={"kind": "linear", "bias": True}),
    "texts by `last_token`": towers(read="last_token", size=160),
    "`task.vision.pooling` other than `default`": towers(pooling="avg", size=160),
    "classifier with a tower of timm": classifier(),
    "classifier with a ViT of transformers": classifier(vision="vit"),
    "classifier, several labels a case": classifier(multi_label=True, temperatures={}),
    "classifier, head with hidden layers": classifier(head={"kind": "mlp", "hidden_sizes": [8]}),
    "classifier, label tree (`joint`)": classifier(
        labels=TREE, temperatures={**ROOT, "mri": 0.6}, tree={"head": "joint"}
    ),
}
