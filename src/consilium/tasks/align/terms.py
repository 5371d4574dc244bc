"""What a report says of sparse texts: which terms a few of them are made of, and how many terms are used at all.

Axes in names: B text in a batch, V term of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from consilium.core.reporter import counted
from consilium.data.cases.cases import Cases
from consilium.evaluation.config import ReportConfig
from consilium.evaluation.report.parts import AddedTable
from consilium.evaluation.report.wording import number, percent
from consilium.tasks.align.task import Align

_TERMS = 10  # of a text that are shown
_READ = 1_000  # texts, spread over all: on a processor a large tower reads ten or twenty in a second
_BATCH = 32


def terms_table(task: Align, cases: Cases, split: str, *, report: ReportConfig) -> AddedTable | None:
    """What a split's texts are made of, as far as they are read once more; None where no text, or no term, is."""
    case_of: dict[str, str] = {}
    for row in cases.rows[split].tolist():
        for text in cases.table.captions(row):
            case_of.setdefault(text, cases.table.ids[row])
    known_V, texts = np.array([name != "" for name in task.terms()], dtype=bool), list(case_of)
    if not len(known_V) or not texts:
        return None
    which = f"The {counted(len(texts), 'different text')}"
    if len(texts) > _READ:
        which = f"{_READ:,} of the {len(texts):,} different texts"
        texts = [texts[place] for place in _spread(len(texts), _READ)]
    shown = set(_spread(len(texts), min(report.cases, len(texts))))
    rows, counts = [], []
    used_V = np.zeros(len(known_V), dtype=bool)
    for place, weights_V in enumerate(_weights(task, texts)):
        own_V = (weights_V.numpy() > 0) & known_V
        used_V |= own_V
        counts.append(int(own_V.sum()))
        if place in shown:
            first = list(task.named(weights_V).items())[:_TERMS]
            rows.append(
                {
                    "case": case_of[texts[place]],
                    **({"text": texts[place]} if report.images else {}),
                    "terms": counts[-1],
                    "highest": " · ".join(f"{name} {weight:.2f}" for name, weight in first),
                }
            )
    unused = percent(1 - used_V.sum() / known_V.sum())
    text = (
        f"Each text is a weight for every one of {number(int(known_V.sum()))} terms. "
        f"{which} of {split} have {np.mean(counts):,.1f} terms above 0 in the mean "
        f"(from {min(counts):,} to {max(counts):,}); {unused} of the terms are in none of them. A few "
        "texts, and the terms that weigh most in each:"
    )
    return AddedTable("Terms of the texts", text, rows, name=f"{split}_terms")


def _spread(count: int, chosen: int) -> list[int]:
    """So many places at equal distances."""
    return np.linspace(0, count - 1, chosen).round().astype(int).tolist()  # type: ignore[no-any-return]


@torch.no_grad()
def _weights(task: Align, texts: Sequence[str]) -> Iterator[Tensor]:
    """The weights [V] of each text."""
    was_training, device = task.training, next(task.parameters()).device
    task.eval()
    for start in range(0, len(texts), _BATCH):
        padded = task.tokenizer.pad(task.tokenizer.encode(texts[start : start + _BATCH]))
        weights_BV = task.text(padded.tokens_BT.to(device), padded.attention_BT.to(device))
        yield from weights_BV.float().cpu()
    task.train(was_training)
