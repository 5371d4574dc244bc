"""Texts that are made of the rows of a source when they are used: captions out of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from consilium.core.errors import ConfigError
from consilium.core.reporter import counted
from consilium.data.case import Text
from consilium.data.sources.config import Source
from consilium.data.store.store import CaseTable


@dataclass(frozen=True)
class Captioned:
    """The cases with their texts, and what a person should know of these."""

    table: CaseTable
    notes: list[str] = field(default_factory=list)


def captioned(table: CaseTable, sources: Sequence[Source]) -> Captioned:
    """The cases with the texts that ``captions`` of their sources makes.

    ``template``: a case without a text gets one of every template, with its label in the place of ``{label}``; several
    labels are listed. One that makes no text is a ConfigError.
    """
    texts, notes = list(table.named_texts), []
    for source in sources:
        rows = [row for row, name in enumerate(table.sources) if name == source.name]
        if source.captions.template:
            notes += _from_labels(table, rows, texts, source)
    return Captioned(table.with_texts(texts), notes) if notes else Captioned(table)


def _from_labels(table: CaseTable, rows: Sequence[int], texts: list[tuple[Text, ...]], source: Source) -> list[str]:
    """Give the cases of a source that have no text those of its templates."""
    without = [row for row in rows if not texts[row]]
    made = [row for row in without if table.labels[row]]
    if not made:
        why = "none of its cases that lack a text has a label" if without else "each of its cases has a text of its own"
        raise ConfigError(
            f"source '{source.name}': captions.template makes no text, since {why}. Name the column of labels "
            "(columns.label; label_levels of a folder), set columns.text: null where its texts are not wanted, or "
            "leave the template out."
        )
    for row in made:
        name = ", ".join(label_words(label) for label in table.labels[row])
        texts[row] = tuple(Text(template.replace("{label}", name)) for template in source.captions.template)
    many = f", {len(source.captions.template)} each" if len(source.captions.template) > 1 else ""
    left = f"; {counted(len(rows) - len(without), 'case')} kept their own" if len(without) < len(rows) else ""
    return [
        f"source '{source.name}': {counted(len(made), 'case')} got texts out of labels (captions.template){many}{left}."
    ]


def label_words(label: str) -> str:
    """A label as people read it: its last part, with spaces in the place of underscores."""
    return " ".join(label.rpartition(".")[2].replace("_", " ").split())
