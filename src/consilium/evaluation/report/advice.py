"""What warnings say to a reader of figures, and what they advise to whoever trains the model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`])")
_COMMAND = "`consilium "


@dataclass(frozen=True)
class Advised:
    """Warnings without their command lines (``said``), and in full those that have one (``to_run``)."""

    said: list[str]
    to_run: list[str]


def advised(warnings: Sequence[str]) -> Advised:
    """Warnings for two readers: one who relies on the figures, and one who can run a command."""
    said = []
    for text in warnings:
        sentences = [sentence for sentence in _SENTENCE_END.split(text) if _COMMAND not in sentence]
        said += [" ".join(sentences)] if sentences else []
    return Advised(said, [text for text in warnings if _COMMAND in text])
