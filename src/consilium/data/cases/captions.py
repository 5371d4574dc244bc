"""Texts that are made of the rows of a source when they are used: sections, sentences, captions out of labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from consilium.core.config import nearest
from consilium.core.errors import ConfigError
from consilium.core.reporter import counted
from consilium.data.case import Text
from consilium.data.cases.reports import plain, sections_of, sentences_of
from consilium.data.sources.config import CaptionConfig, Source
from consilium.data.store.store import CaseTable


@dataclass(frozen=True)
class Captioned:
    """The cases with their texts, and what a person should know of these."""

    table: CaseTable
    notes: list[str] = field(default_factory=list)


def captioned(table: CaseTable, sources: Sequence[Source]) -> Captioned:
    """The cases with the texts that ``captions`` of their sources makes.

    ``sections``: the texts of a case are these sections of its report, as far as it has them: a text of that name, or
    what follows the heading in any of its texts. A section that no case has is a ConfigError. ``template``: a case
    without a text gets one of every template, with its label in the place of ``{label}``; several labels are listed.
    One that makes no text is a ConfigError. ``sentences``: a training draws a sentence in the place of a text.
    """
    asked = [source for source in sources if source.captions != CaptionConfig()]
    if not asked:
        return Captioned(table)
    texts, notes = list(table.named_texts), []
    for source in asked:
        rows = [row for row, name in enumerate(table.sources) if name == source.name]
        if source.captions.sections:
            notes += _sections(rows, texts, source)
        if source.captions.template:
            notes += _from_labels(table, rows, texts, source)
        if source.captions.sentences:
            notes += _sentences(rows, texts, source)
    return Captioned(table.with_texts(texts), notes) if notes else Captioned(table)


def _sections(rows: Sequence[int], texts: list[tuple[Text, ...]], source: Source) -> list[str]:
    """Put the wanted sections of a source's reports into the place of these; what is said and counted."""
    wanted, whole = [plain(name) for name in source.captions.sections], source.captions.without_section == "whole"
    counts, headings = Counter[str](), Counter[str]()
    reports = [row for row in rows if texts[row]]
    without = 0
    for row in reports:
        found: dict[str, str] = {}
        for text in texts[row]:
            own = sections_of(text.text, wanted) if plain(text.name) not in wanted else {}
            found = {**own, **({plain(text.name): text.text} if text.name else {}), **found}
        headings.update(found.keys())
        chosen = tuple(Text(found[name], name) for name in wanted if name in found)
        counts.update(text.name for text in chosen)
        without += not chosen
        if chosen or not whole:
            texts[row] = chosen
    for name in wanted:
        if not counts[name]:
            raise ConfigError(
                f"source '{source.name}': captions.sections names '{name}', which none of "
                f"{counted(len(reports), 'report')} has{nearest(name, sorted(headings), there='there are')} A heading "
                "stands before a colon, as in FINDINGS:."
            )
    shares = ", ".join(f"{name} in {count}" for name, count in counts.items())
    kept = "stays whole" if whole else "is missing"
    left = f"; the text of {counted(without, 'case')} without any {kept} (captions.without_section)" if without else ""
    return [f"source '{source.name}': sections of {counted(len(reports), 'report')}: {shares}{left}."]


def _sentences(rows: Sequence[int], texts: list[tuple[Text, ...]], source: Source) -> list[str]:
    """Take the texts of a source apart into sentences."""
    for row in rows:
        texts[row] = tuple(text._replace(parts=tuple(sentences_of(text.text))) for text in texts[row])
    parts = [len(text.parts) for row in rows for text in texts[row]]
    mean = f"{sum(parts) / len(parts):.1f}" if parts else "0"
    return [
        f"source '{source.name}': {counted(len(parts), 'text')} of {mean} sentences on average, of which one is drawn."
    ]


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
