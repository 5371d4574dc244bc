"""A trained expert whose towers another learns from, beside its own pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from consilium.core.errors import ConfigError
from consilium.data.config import ImageConfig
from consilium.losses.config import DistillationConfig
from consilium.tasks.align.task import Align
from consilium.tasks.family import Member

SEEN = ("size", "mean", "std", "fit", "interpolation")  # of images, what teacher and learner must share


def teacher_of(task: Align, config: DistillationConfig, member: Member, image: ImageConfig) -> Mapping[str, nn.Module]:
    """The towers that teach ``task``: that of images, and that of texts where both read the same tokens.

    Images of another kind, or features of another width where these are compared as they are, are a ConfigError.
    """
    key, name, own = "task.feature_distillation.teacher", str(config.teacher), member.task
    if not isinstance(own, Align):
        raise ConfigError(f"{key}: {name} has no image and text tower; name a bundle of task.kind: align.")
    if different := [what for what in SEEN if getattr(image, what) != getattr(member.image, what)]:
        raise ConfigError(
            f"{key}: {name} takes images with another data.image.{', '.join(different)}, and both must see the same; "
            "leave these keys out, which takes over those of the teacher."
        )
    towers: dict[str, Any] = {"image": own.vision}
    if own.tokenizer.definition == task.tokenizer.definition:
        towers["text"] = own.text
    learners: dict[str, Any] = {"image": task.vision, "text": task.text}
    for side, tower in towers.items():
        here, there = learners[side].num_features, tower.num_features
        if config.kind != "similarity_matrix" and here != there:
            raise ConfigError(
                f"{key}: the {side} tower of {name} gives {there} features, this one {here}, which kind: {config.kind} "
                "cannot compare; take kind: similarity_matrix."
            )
    task.inherit([own])
    return towers
