"""Sentences that name a label are taken out of texts, so that a model does not read its answer there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from consilium.core.reporter import counted
from consilium.data.batches.readers import Texts
from consilium.data.case import Text
from consilium.data.cases.filters import Filtered
from consilium.data.cases.reports import sentences_of
from consilium.data.guards.texts import Finder, label_phrases


class Mentions:
    """Finds the sentences with one of some phrases; words count as in the check of labels in texts."""

    def __init__(self, phrases: Sequence[str]) -> None:
        self._finder = Finder.of_phrases(phrases)

    def without(self, text: str) -> tuple[str, int]:
        """The text without the sentences that have a phrase, and how many these are; '' where nothing is left.

        A text without such a sentence stays as it is, to the last space.
        """
        if not self._finder.of(text):
            return text, 0
        sentences = sentences_of(text)
        left = [sentence for sentence in sentences if not self._finder.of(sentence)]
        return (" ".join(left), len(sentences) - len(left)) if len(left) < len(sentences) else (text, 0)

    def stripped(self, text: Text) -> tuple[Text, int]:
        """A text of a case and its parts without such sentences, and how many these were in the whole."""
        whole, count = self.without(text.text)
        parts = (self.without(part)[0] for part in text.parts)
        return text._replace(text=whole, parts=tuple(filter(None, parts))), count


@dataclass(frozen=True)
class WithoutMentions:
    """Rows of texts without the sentences that name a label; a text that is nothing then is missing."""

    texts: Texts
    mentions: Mentions

    @property
    def most_captions(self) -> int:
        """As many as before, at most."""
        return self.texts.most_captions

    def captions(self, row: int) -> list[str]:
        """What is left of the texts of a row, each once."""
        left = (self.mentions.without(text)[0] for text in self.texts.captions(row))
        return list(dict.fromkeys(filter(None, left)))


def without_mentions(found: Filtered, *, synonyms: Mapping[str, Sequence[str]]) -> Filtered:
    """The cases without the sentences that name a label of any of them, a part of one (a.b), or a synonym.

    A text of one label is also without the sentences that name another: what is taken out follows from the text alone,
    so that a model can do the same without knowing the label.
    """
    table = found.table
    phrases, notes = label_phrases({label for own in table.labels for label in own}, synonyms)
    mentions = Mentions(phrases)
    texts, touched, sentences, emptied = [], 0, 0, 0
    for own in table.named_texts:
        stripped = [mentions.stripped(text) for text in own]
        count = sum(count for _, count in stripped)
        left = tuple(text for text, _ in stripped if text.text)
        texts.append(left)
        sentences, touched, emptied = sentences + count, touched + bool(count), emptied + bool(own and not left)
    with_text = sum(map(bool, table.named_texts))
    share = f" ({touched / with_text:.1%})" if with_text else ""
    notes.append(
        f"data.strip_label_mentions took {counted(sentences, 'sentence')} that name a label out of the texts of "
        f"{touched:,} of {counted(with_text, 'case')} with a text{share}; {emptied:,} have no text left."
    )
    return Filtered(table.with_texts(texts), [*found.notes, *notes], mentions=tuple(phrases))
