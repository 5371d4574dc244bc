"""What a bundle of align knows beside its weights."""

from __future__ import annotations

from typing import Any

from consilium.core.section import Knowledge
from consilium.models.checkpoints.layout import ImageLayout, ProjectionLayout
from consilium.models.config import TextPooling


class AlignKnowledge(Knowledge):
    """The tokenizer (the text of its ``tokenizer.json``), and once it is built what the task is made of.

    ``architecture`` is that of the text encoder, ``pooling`` how its texts are read out, ``image`` what the image tower
    is made of where the config does not say it, ``projections`` what a whole pretrained model has, by side.
    """

    tokenizer: str
    architecture: dict[str, Any] | None = None
    pooling: TextPooling | None = None
    image: ImageLayout | None = None
    projections: dict[str, ProjectionLayout] | None = None
