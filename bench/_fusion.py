"""Folds of images with notes, and what is kept of a training that answers with and without either.

Of each training a small file holds the answers: what it says of its validation and test cases by all that they have
(``both``), by the image and by the text alone. Axes in names: N case, S seed, R resample, K class.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench._pairs import Case
from bench._retrieval import RESAMPLES
from consilium.core.files import write_text
from consilium.evaluation.metrics import Floats

SETS = ("ham10000 notes", "isic2017 notes")


@dataclass(frozen=True)
class Answered:
    """Answers to the cases of a fold, by what was seen of them; ``validation`` is the macro F1 that chooses."""

    validation: float
    answers: dict[str, list[str]]
    seconds: float


def autogluon_file(out: Path, name: str, *, fold: int) -> Path:
    """Where AutoGluon's answers to a fold of a set are kept."""
    return out / name.replace(" ", "_") / f"autogluon-{fold}-0.json"


def kept(file: Path) -> Answered | None:
    """What a finished training left."""
    return Answered(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def keep(file: Path, answered: Answered) -> None:
    """Leave it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(asdict(answered)))


def losing_half(cases: Sequence[Case]) -> np.ndarray:
    """Which cases lose their text where half of those that have one do, bool [N]; their names decide."""
    having = sorted((case.id for case in cases if case.text), key=lambda name: hashlib.sha256(name.encode()).digest())
    lost = set(having[: len(having) // 2])
    return np.array([case.id in lost for case in cases])


def figures(answers_SN: np.ndarray, truth_N: np.ndarray, groups: Sequence[str]) -> dict[str, Floats]:
    """Accuracy and macro F1, the mean over seeds: first of the cases themselves, then of each resample, [1 + R].

    Resamples are of groups and of seeds, and the same for all who answer the same cases with as many seeds.
    """
    chance = np.random.default_rng(0)
    group_N = np.unique(groups, return_inverse=True)[1]
    count, seeds = group_N.max() + 1, len(answers_SN)
    weights_RN = chance.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)[:, group_N]
    weights_RN = np.concatenate((np.ones((1, len(truth_N)), int), weights_RN))
    picked_RS = np.concatenate((np.arange(seeds)[None], chance.integers(seeds, size=(RESAMPLES, seeds))))
    true_NK = truth_N[:, None] == np.unique(truth_N)
    accuracy, f1 = [], []
    for answers_N in answers_SN:
        said_NK = answers_N[:, None] == np.unique(truth_N)
        right_RK = weights_RN @ (said_NK & true_NK)
        of_RK = weights_RN @ true_NK + weights_RN @ said_NK
        f1.append((2 * right_RK / np.maximum(of_RK, 1)).mean(1))
        accuracy.append(right_RK.sum(1) / weights_RN.sum(1))
    rows_R = np.arange(len(weights_RN))[:, None]
    return {
        "macro F1": np.stack(f1, axis=1)[rows_R, picked_RS].mean(1),
        "accuracy": np.stack(accuracy, axis=1)[rows_R, picked_RS].mean(1),
    }


def macro_f1(answers: Sequence[str], cases: Sequence[Case]) -> float:
    """Of the cases themselves."""
    truth_N = np.array([str(case.label) for case in cases])
    return float(figures(np.array([answers]), truth_N, [case.group for case in cases])["macro F1"][0])


def write_cases(file: Path, parts: Mapping[str, Sequence[Case]]) -> None:
    """A line for each case, which names its split; a text that is not there is left out."""
    with file.open("w", encoding="utf-8") as opened:
        for split, cases in parts.items():
            for case in cases:
                row = {"id": case.id, "image": case.image, "label": case.label, "group_id": case.group, "split": split}
                opened.write(json.dumps(row | ({"text": case.text} if case.text else {})) + "\n")
