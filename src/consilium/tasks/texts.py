"""What is odd about the texts of a training, before any model is built."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from consilium.core.errors import DataError
from consilium.core.reporter import counted
from consilium.data.cases.cases import Cases

if TYPE_CHECKING:
    from consilium.models.tokenizer import Tokenizer

_LOOKED_AT = 1_000  # texts of a source in which unknown words are counted


def cut_texts(texts: Mapping[str, Sequence[str]], tokenizer: Tokenizer) -> list[str]:
    """How many training texts of each source are longer than the text tower reads; nothing of a source without any."""
    cut = {source: tokenizer.count_cut(own) for source, own in texts.items()}
    return [
        f"source '{source}': {count} of {counted(len(texts[source]), 'training text')} "
        f"{'is' if count == 1 else 'are'} longer than the text tower reads (task.text.context_length: "
        f"{tokenizer.context_length} tokens), and {'is' if count == 1 else 'are'} cut."
        for source, count in cut.items()
        if count
    ]


def refuse_foreign_texts(texts_of: Mapping[str, Sequence[str]], tokenizer: Tokenizer) -> None:
    """A source of whose words the tokenizer knows less than half is a DataError: all its texts would be alike."""
    from consilium.models.tokenizer import FOREIGN

    for source, texts in texts_of.items():
        share = tokenizer.unknown_share(texts[:: max(1, len(texts) // _LOOKED_AT)])
        if share > FOREIGN:
            raise DataError(
                f"source '{source}': the tokenizer of task.text does not know {100 * share:.0f} % of the tokens of its "
                f"training texts (the first: '{texts[0][:60]}'). They are in another language than it: name a text "
                "tower of their language (hfl/chinese-roberta-wwm-ext for Chinese), or leave the source out."
            )


def training_texts(cases: Cases) -> dict[str, list[str]]:
    """The training texts of each source."""
    texts: dict[str, list[str]] = defaultdict(list)
    for row in cases.rows["train"].tolist():
        texts[cases.table.sources[row]] += cases.table.drawn(row)
    return texts
