"""Towers that a task takes from elsewhere: from a trained bundle, or from a whole pretrained model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from consilium.core.errors import ConfigError
from consilium.models.checkpoints.layout import ImageLayout, PretrainedInput
from consilium.models.config import TextConfig, VisionConfig
from consilium.tasks.family import Known, Member

if TYPE_CHECKING:
    from consilium.models.checkpoints.pretrained import ImageSource, TextSource
    from consilium.models.vision import VisionTower


def image_settings(shown: PretrainedInput) -> dict[str, Any]:
    """The ``data.image`` section for which weights were trained."""
    settings: dict[str, Any] = {
        "size": list(shown.size),
        "statistics": "given",
        "mean": list(shown.mean),
        "std": list(shown.std),
        "interpolation": "bilinear" if shown.interpolation == "bilinear" else "bicubic",
    }
    return settings if shown.fit is None else {**settings, "fit": shown.fit}


def vision_settings(config: VisionConfig, borrowed: Mapping[str, Known], *, path: str = "vision") -> dict[str, Any]:
    """What an image tower brings: the images that it takes, and of a bundle how it is read out."""
    if config.kind == "timm":
        return {}
    if config.kind != "bundle":
        from consilium.models.checkpoints.find import find_image

        return {"data": {"image": image_settings(find_image(config).layout.input)}}
    known = borrowed[config.name]
    own = getattr(known.section, "vision", None)
    pooling = {} if not isinstance(own, VisionConfig) else {"task": {path: {"pooling": own.pooling}}}
    return {**pooling, **images_of(known)}


def text_settings(config: TextConfig, borrowed: Mapping[str, Known]) -> dict[str, Any]:
    """What a text tower brings: that of a bundle how many tokens it reads, and how it is read out."""
    if config.kind != "bundle":
        return {}
    known = borrowed[config.name]
    own, knowledge = getattr(known.section, "text", None), known.knowledge
    if not isinstance(own, TextConfig):
        raise ConfigError(f"task.text.name: {config.name} is a bundle without a text tower; name one of kind align.")
    pooling = getattr(knowledge, "pooling", None) or own.pooling or "cls"
    return {"task": {"text": {"context_length": own.context_length, "pooling": pooling}}}


def borrowed_text(config: TextConfig, members: Mapping[str, Member]) -> TextSource | None:
    """The text tower of the bundle that a config names; None where it names none."""
    from consilium.models.checkpoints.pretrained import TextSource
    from consilium.models.encoders import LoadedEncoder

    if config.kind != "bundle" or config.name not in members:
        return None
    task: Any = members[config.name].task
    tower, tokenizer = task.text, task.tokenizer
    return TextSource(
        kind=tower.architecture["model_type"],
        pooling=tower.pooling,
        context_length=tokenizer.context_length,
        tokenizer=lambda: (tokenizer.definition, tokenizer.pad_id),
        load=lambda: LoadedEncoder(tower.model, licenses=task.licenses),
    )


def images_of(known: Known) -> dict[str, Any]:
    """The images that a bundle takes, as settings."""
    return {"data": {"image": known.image.model_dump(mode="json", exclude={"max_pixels", "window"})}}


def borrowed_image(config: VisionConfig, members: Mapping[str, Member]) -> ImageSource | None:
    """The image tower of the bundle that a config names; None where it names none."""
    from consilium.models.checkpoints.pretrained import ImageSource
    from consilium.models.encoders import LoadedEncoder
    from consilium.models.vision import VisionTower

    if config.kind != "bundle" or config.name not in members:
        return None
    member = members[config.name]
    towers = [module for module in member.task.modules() if isinstance(module, VisionTower)]
    if len(towers) != 1:
        what = "no image tower" if not towers else f"{len(towers)} image towers"
        raise ConfigError(f"task.vision.name: the bundle {config.name} has {what}; name one that has a single one.")
    (tower,) = towers
    if config.pooling != tower.pooling:
        raise ConfigError(
            f"task.vision.pooling is {config.pooling}, but the tower of {config.name} was trained with "
            f"{tower.pooling}; leave it out."
        )

    def load(*, image_size: tuple[int, int], drop_path: float = 0.0) -> LoadedEncoder:
        if image_size != member.image.size and hasattr(tower.model, "set_input_size"):
            tower.model.set_input_size(img_size=image_size)
        return LoadedEncoder(tower.model, licenses=member.task.licenses)

    return ImageSource(layout_of(tower), load)


def layout_of(tower: VisionTower) -> ImageLayout:
    """What a bundle keeps of a tower; that of a plain timm model is its name."""
    if tower.layout is not None:
        return tower.layout
    cfg = tower.model.pretrained_cfg
    return ImageLayout(library="timm", name=cfg["architecture"], input=tower.pretrained_input)
