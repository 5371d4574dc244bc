"""Captioned images of the shared folder, in five folds by group.

Data is ``pairs/*.jsonl`` in the folder that CONSILIUM_SHARED names.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from sklearn.model_selection import GroupKFold, GroupShuffleSplit

FOLDS = 5


@dataclass(frozen=True)
class Pairs:
    """A file of captioned images, what its labels are, and the tokens that are read of a text.

    ``text`` is the column of the texts; ``context`` leaves the diagnosis out, and some cases have none.
    """

    file: str
    context: int
    text: str = "text"
    label: str = "label"
    unlabelled: str | None = None


SETS = {
    "isic2017": Pairs("isic2017_captions.jsonl", 32),
    "ham10000": Pairs("ham10000_captions.jsonl", 40),
    "vqa_rad": Pairs("vqa_rad.jsonl", 56, label="organ"),  # its own labels are yes and no
    "covid": Pairs("covid_cxr_notes.jsonl", 128, unlabelled="unlabelled"),
    "busi": Pairs("busi_captions.jsonl", 16),
    "isic2017 notes": Pairs("isic2017_captions.jsonl", 32, text="context"),
    "ham10000 notes": Pairs("ham10000_captions.jsonl", 40, text="context"),
}


@dataclass(frozen=True)
class Case:
    """A pair."""

    id: str
    image: str
    text: str
    group: str
    label: str | None


@lru_cache(maxsize=1)
def read_cases(name: str) -> list[Case]:
    """The pairs of a set."""
    shared, pairs = Path(os.environ["CONSILIUM_SHARED"]), SETS[name]
    lines = (shared / "pairs" / pairs.file).read_text(encoding="utf-8").splitlines()
    cases = []
    for number, row in enumerate(map(json.loads, lines)):
        label = None if row.get(pairs.label) in (None, pairs.unlabelled) else str(row[pairs.label])
        image = str(shared / row["modalities"][0]["value"])
        cases.append(
            Case(f"{name}-{number:04d}", image, " ".join((row.get(pairs.text) or "").split()), row["group_id"], label)
        )
    return cases


def split(cases: list[Case], *, fold: int) -> dict[str, list[Case]]:
    """``train``, ``val`` and ``test`` of a fold, by group."""
    groups = np.array([case.group for case in cases])
    folds = GroupKFold(FOLDS, shuffle=True, random_state=0).split(groups, groups=groups)
    rest, test = list(folds)[fold]
    inner = GroupShuffleSplit(1, test_size=0.2, random_state=0).split(rest, groups=groups[rest])
    learned, val = next(inner)
    rows = {"train": rest[learned], "val": rest[val], "test": test}
    return {name: [cases[row] for row in own] for name, own in rows.items()}
