"""What warnings say to a reader of figures, and what they advise to whoever trains the model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from consilium.core.reporter import in_common, some

# Where notes of one kind may differ: numbers, what stands in brackets or quotes, and a list before a semicolon.
_VARYING = re.compile(r"\d+(?:[.,]\d+)*|(?<=\()[^()]*(?=\))|'[^']*'|(?<=case of: )[^;]*(?=;)|(?<=cases of: )[^;]*(?=;)")
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


def gathered(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """The notes on several trainings by name: first what is said of all, then the others, each with whom it is said of.

    What differs only in numbers is one line.
    """
    everywhere = [note for note in next(iter(notes.values()), ()) if all(note in own for own in notes.values())]
    kinds: dict[str, list[tuple[str, str]]] = {}
    for name, own in notes.items():
        for note in own:
            if note not in everywhere:
                kinds.setdefault(_VARYING.sub("...", note), []).append((name, note))
    return everywhere + [
        f"{some([name for name, _ in of_kind], 6)}: {in_common([note for _, note in of_kind], varying=_VARYING)}"
        for of_kind in kinds.values()
    ]
