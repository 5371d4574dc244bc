"""How the align task is made: each tower by itself, or a whole pretrained model; and what pretrained models bring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from consilium.core.config import merge
from consilium.core.errors import ConfigError
from consilium.core.licenses import with_stated
from consilium.losses.config import SigmoidContrastiveConfig
from consilium.models.checkpoints.find import find_model
from consilium.models.checkpoints.layout import ModelLayout
from consilium.models.checkpoints.pretrained import (
    SIDES,
    Pretrained,
    image_source,
    linear_layers,
    text_source,
)
from consilium.models.projection import Projection, build_projection
from consilium.models.text import build_text
from consilium.models.tokenizer import Tokenizer
from consilium.models.tuning import tune
from consilium.models.vision import build_vision
from consilium.tasks.align.config import AlignConfig
from consilium.tasks.align.knowledge import AlignKnowledge
from consilium.tasks.align.start import begin_views
from consilium.tasks.align.task import Align
from consilium.tasks.align.views import AlignViews, ViewHeads, text_head
from consilium.tasks.family import Brought, Known, Member
from consilium.tasks.towers import borrowed_image, borrowed_text, image_settings, text_settings, vision_settings


def build_align(
    section: AlignConfig,
    knowledge: AlignKnowledge,
    *,
    image_size: tuple[int, int],
    members: Mapping[str, Member],
    weights: bool,
) -> Align:
    """The task of a section. Without ``weights`` its parts are those that a bundle knows, and random."""
    tokenizer, whole = Tokenizer(knowledge.tokenizer), None
    if section.model is not None and weights:
        whole = find_model(section.model.name, weights=section.model.pretrained, views=section.views is not None)
    vision = build_vision(
        section.vision,
        image_size=image_size,
        weights=weights,
        layout=knowledge.image,
        source=borrowed_image(section.vision, members) if whole is None else image_source(whole),
    )
    text = build_text(
        section.text,
        tokenizer=tokenizer,
        architecture=None if weights else knowledge.architecture,
        pooling=knowledge.pooling,
        source=borrowed_text(section.text, members) if whole is None else text_source(whole),
    )
    if weights:
        tune(vision, section.vision, key="task.vision")
        tune(text, section.text, key="task.text")
    layouts = knowledge.projections if whole is None else _projections(whole.layout)
    if layouts is not None:
        tensors = {} if whole is None else whole.joint().projections
        projections = {side: Projection(linear_layers(layouts[side], tensors.get(side))) for side in SIDES}
    else:
        widths = {"image": vision.num_features, "text": text.num_features}
        projections = {
            side: build_projection(section.projection, in_features=width, width=section.embedding_size)
            for side, width in widths.items()
        }
    if section.views is not None:
        projections["text"] = Projection(text_head(text.num_features, section.embedding_size))
    parts: dict[str, Any] = {"vision": vision, "text": text, "projections": projections, "tokenizer": tokenizer}
    if section.view_names:
        views = len(section.view_names)
        heads = ViewHeads(views=views, width=section.embedding_size, text_features=text.num_features)
        task: Align = AlignViews(section, heads=heads, **parts)
    else:
        task = Align(section, **parts)
    task.projections = layouts
    if section.model is not None and whole is not None:
        _start_as(task, whole)
        stated, source = section.model.license, section.model.name
        task.licenses = with_stated(task.licenses, stated, source=source, key="task.model.license")
    if section.views is not None and weights:
        begin_views(task, section, whole, as_it_came=not knowledge.training_cases)
    return task


def brought(section: AlignConfig, borrowed: Mapping[str, Known]) -> Brought:
    """What a whole model brings, or else what the towers do."""
    if section.model is None:
        settings = merge(vision_settings(section.vision, borrowed), text_settings(section.text, borrowed))
        return Brought(settings, borrowed[section.text.name].knowledge if section.text.kind == "bundle" else None)
    layout = find_model(section.model.name, weights=section.model.pretrained, views=section.views is not None).layout
    if "embedding_size" in section.model_fields_set and section.embedding_size != layout.embedding_size:
        raise ConfigError(
            f"task.embedding_size is {section.embedding_size}, but {section.model.name} was trained with "
            f"{layout.embedding_size}; leave it out."
        )
    task: dict[str, Any] = {
        "embedding_size": layout.embedding_size,
        "text": {"context_length": layout.text.context_length},
    }
    if layout.loss == "sigmoid" and "loss" not in section.model_fields_set:
        task["loss"] = SigmoidContrastiveConfig().model_dump(mode="json")
    return Brought({"task": task, "data": {"image": image_settings(layout.image.input)}})


def _projections(layout: ModelLayout) -> dict[str, Any]:
    return {"image": layout.image_projection, "text": layout.text_projection}


def _start_as(task: Align, whole: Pretrained) -> None:
    """Begin with the temperature and the bias that a model has learned, unless the config gives others."""
    joint = whole.joint()
    for loss in task.losses:
        loss.start_at(joint.log_scale, bias=joint.bias)
