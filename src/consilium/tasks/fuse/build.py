"""How the fuse task is made."""

from __future__ import annotations

from collections.abc import Mapping

from consilium.losses.classification import build_loss
from consilium.models.text import TextTower, build_text
from consilium.models.tokenizer import Tokenizer
from consilium.models.tuning import tune
from consilium.models.vectors import VectorCoder, VectorTower
from consilium.models.vision import build_vision
from consilium.tasks.family import Member
from consilium.tasks.fuse.config import FuseConfig
from consilium.tasks.fuse.knowledge import FuseKnowledge
from consilium.tasks.fuse.task import Fuse
from consilium.tasks.towers import borrowed_image, borrowed_text


def build_fuse(
    section: FuseConfig,
    knowledge: FuseKnowledge,
    *,
    image_size: tuple[int, int],
    members: Mapping[str, Member],
    weights: bool,
) -> Fuse:
    """The task of a section, calibrated. Without ``weights`` its parts are those that a bundle knows, and random."""
    vision = build_vision(
        section.vision,
        image_size=image_size,
        weights=weights,
        layout=None if weights else knowledge.tower,
        source=borrowed_image(section.vision, members),
    )
    if weights:
        tune(vision, section.vision, key="task.vision")
    text, tokenizer = _texts(section, knowledge, members=members, weights=weights)
    loss = build_loss(
        section.loss,
        labels=knowledge.tree,
        multi_label=section.multi_label,
        class_counts=knowledge.class_counts,
        cases=knowledge.training_cases,
    )
    task = Fuse(
        section,
        labels=knowledge.tree,
        vision=vision,
        text=text,
        tokenizer=tokenizer,
        metadata=knowledge.metadata,
        loss=loss,
    )
    task.calibrate(knowledge.calibration)
    return task


def _texts(
    section: FuseConfig, knowledge: FuseKnowledge, *, members: Mapping[str, Member], weights: bool
) -> tuple[TextTower | VectorTower, Tokenizer | VectorCoder]:
    """What makes features of texts, and what makes its tokens."""
    if knowledge.vectors is not None:
        coder = VectorCoder(section.text.name, knowledge.vectors)
        return VectorTower(coder), coder
    tokenizer = Tokenizer(knowledge.tokenizer)
    text = build_text(
        section.text,
        tokenizer=tokenizer,
        architecture=None if weights else knowledge.architecture,
        pooling=knowledge.pooling,
        source=borrowed_text(section.text, members),
    )
    if weights:
        tune(text, section.text, key="task.text")
    return text, tokenizer
