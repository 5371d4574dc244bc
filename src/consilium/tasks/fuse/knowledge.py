"""What a bundle of fuse knows; no torch."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from consilium.core.section import Knowledge
from consilium.core.vectors import VectorFacts
from consilium.data.cases.metadata import MetadataCode
from consilium.models.config import TextPooling
from consilium.tasks.answers.targets import LabelKnowledge


class BorrowedText(Knowledge):
    """The tokenizer that a text tower of another bundle brings, before anything else is known."""

    tokenizer: str = Field(description="The tokenizer as JSON.")


class FuseKnowledge(LabelKnowledge):
    """The labels, the tokenizer, what the text tower is made of, and what metadata means: a bundle needs no hub."""

    tokenizer: str = Field(description="The tokenizer as JSON; '' where vectors stand for a text tower.")
    vectors: VectorFacts | None = Field(default=None, description="What the vectors of its texts must be.")
    architecture: dict[str, Any] | None = Field(default=None, description="The text encoder's config.")
    pooling: TextPooling | None = Field(default=None, description="How a text becomes one vector.")
    metadata: MetadataCode | None = Field(default=None, description="How metadata becomes numbers; null: none is read.")
