"""The judged cases of retrieval, and how they stand at each level of what counts as right."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from consilium.core.errors import DataError
from consilium.core.evaluation import Outputs
from consilium.evaluation.metrics import Bools, Floats, Ints, as_weights
from consilium.evaluation.retrieval import figures as f
from consilium.evaluation.retrieval import ranks as r

Direction = Literal["image_to_text", "text_to_image"]
Level = Literal["text", "instance", "label"]
DIRECTIONS: tuple[Direction, ...] = ("image_to_text", "text_to_image")
LEVELS: tuple[Level, ...] = ("text", "instance", "label")
RECALLS = (1, 5, 10)
FIGURES = (*(f"recall_at_{k}" for k in RECALLS), "median_rank", "mean_average_precision")


@dataclass(frozen=True)
class RetrievalCases:
    """The judged cases N, the different texts M, and the pairs P of a case and a text of its own, case by case.

    ``place_P`` is which of its case's texts that is, from 1; ``first_M`` is the first pair of each text. ``label_N``
    numbers the sets of labels, -1 where a case has none.
    """

    images_NF: Floats
    texts_MF: Floats
    case_P: Ints
    text_P: Ints
    place_P: Ints
    first_M: Ints
    scale: float | None
    ids: list[str]
    groups: list[str]
    labels: list[tuple[str, ...]]
    label_N: Ints
    columns: dict[str, list[str]]

    def mean(self, values_P: Floats | Bools) -> Floats:
        """Of each case the mean over its texts, [N]."""
        return np.asarray(np.bincount(self.case_P, values_P) / np.bincount(self.case_P))

    def weights(self, weights_N: Floats | None) -> Floats:
        """How much each pair counts, [..., P], where the texts of a case count as one."""
        return as_weights(weights_N, len(self.ids))[..., self.case_P] / np.bincount(self.case_P)[self.case_P]

    @property
    def first_N(self) -> Ints:
        """The first pair of each case."""
        return np.unique(self.case_P, return_index=True)[1]


@dataclass(frozen=True)
class Way:
    """How the queries of one direction fare at one level: the standing of the query of each pair, [P].

    Where ``there_N`` is False a case is no query. ``defined``: there is a wrong answer for at least one query.
    """

    level: Level
    direction: Direction
    standing: r.Standing
    there_N: Bools
    defined: bool

    def name(self, figure: str) -> str:
        """What a figure of it is called."""
        return figure_name(self.level, self.direction, figure)

    def chances(self, cases: RetrievalCases, among_N: Bools | None = None) -> dict[str, float]:
        """What the figures would be, were the order of the answers random; ``among_N``: those of some of the cases."""
        asked_N = self.there_N if among_N is None else self.there_N & among_N
        weights_P = cases.weights(asked_N.astype(float))
        asked = weights_P > 0
        if not self.defined or not asked.any():
            return {}
        right_P, weights_P, gallery = self.standing.right_Q[asked], weights_P[asked], self.standing.gallery
        recalls = f.chance_recalls(right_P, gallery, weights_P=weights_P)
        return {
            **{f"recall_at_{k}": float(recalls[min(k, gallery)]) for k in RECALLS},
            "median_rank": f.median_of_recalls(recalls),
            "mean_average_precision": f.chance_average_precision(right_P, gallery, weights_P=weights_P),
        }


def figure_name(level: Level, direction: Direction, figure: str) -> str:
    """What a figure is called; that of equal texts is the plain one."""
    return f"{direction}_{figure}" if level == "text" else f"{level}_{direction}_{figure}"


def read_cases(outputs: Outputs) -> RetrievalCases:
    """The cases with a text; outputs that do not fit, or are no finite numbers, are a DataError."""
    count = len(outputs.ids)
    images, texts = (np.asarray(outputs.arrays[f"{side}_embeddings"]) for side in ("image", "text"))
    same = np.asarray(outputs.arrays["same_text"])
    expected = (*same.shape, *images.shape[1:])
    if images.ndim != 2 or same.ndim not in (1, 2) or texts.shape != expected or {len(images), len(same)} != {count}:
        raise DataError(
            f"image_embeddings {images.shape}, text_embeddings {texts.shape} and same_text {same.shape} do not fit "
            f"{count} cases; expected [N, F], [N, K, F] and [N, K]."
        )
    texts_NKF, same_NK = texts.reshape(count, -1, images.shape[1]), same.reshape(count, -1)
    rows = np.flatnonzero((same_NK >= 0).any(axis=1))
    if not len(rows):
        raise DataError(f"none of {count} cases has a text; retrieval needs cases with an image and a text.")
    case_P, place_P = np.nonzero(same_NK[rows] >= 0)
    once = np.unique(np.stack((case_P, same_NK[rows][case_P, place_P])), axis=1, return_index=True)[1]
    case_P, place_P = case_P[np.sort(once)], place_P[np.sort(once)]  # each text of a case once
    texts_PF, same_P = texts_NKF[rows][case_P, place_P], same_NK[rows][case_P, place_P]
    for name, array, row in (("image", images[rows], rows), ("text", texts_PF, rows[case_P])):
        broken = np.unique(row[~np.isfinite(array).all(axis=1)])
        if len(broken):
            raise DataError(
                f"the {name} embeddings of {len(broken)} of {count} cases are not finite numbers (the first: "
                f"{outputs.ids[broken[0]]}); the model's weights are damaged or have diverged."
            )
    _, first_M, text_P = np.unique(same_P, return_index=True, return_inverse=True)
    scale = outputs.arrays.get("scale")
    labels = [tuple(sorted(outputs.labels[row])) if outputs.labels else () for row in rows]
    numbers = {own: number for number, own in enumerate(sorted(set(labels) - {()}))}
    return RetrievalCases(
        images_NF=r.unit(images[rows]),
        texts_MF=r.unit(texts_PF[first_M]),
        case_P=case_P,
        text_P=text_P,
        place_P=place_P + 1,
        first_M=first_M,
        scale=None if scale is None else float(scale[rows[0]]),
        ids=[outputs.ids[row] for row in rows],
        groups=[outputs.groups[row] for row in rows],
        labels=labels,
        label_N=np.array([numbers.get(own, -1) for own in labels]),
        columns={name: [values[row] for row in rows] for name, values in outputs.columns.items()},
    )


# -- Levels -------------------------------------------------------------------------------------------------------


def ways(cases: RetrievalCases) -> list[Way]:
    """Both directions at every level.

    ``text``: the gallery are the different texts, or all images; right are all that have the same text. ``instance``:
    the gallery are the texts of each case, be they equal or not, or all images; only the case's own are right.
    ``label``: as ``instance``, of the cases that have labels; right are all whose case has the same labels.
    """
    by_text = _by_text(cases)
    by_instance = (
        [replace(way, level="instance") for way in by_text]
        if len(cases.texts_MF) == len(cases.case_P)  # no text is in two cases
        else _by_instance(cases)
    )
    return [*by_text, *by_instance, *_by_label(cases)]


def _by_text(cases: RetrievalCases) -> list[Way]:
    found = r.by_pairs(cases.images_NF, cases.texts_MF, image_P=cases.case_P, text_P=cases.text_P, scale=cases.scale)
    defined = len(cases.case_P) < len(cases.images_NF) * len(cases.texts_MF)
    standings = found[0].take(cases.case_P), found[1].take(cases.text_P)
    return _both("text", standings, np.ones(len(cases.ids), dtype=bool), defined)


def _by_instance(cases: RetrievalCases) -> list[Way]:
    pairs = np.arange(len(cases.case_P))
    images, texts = r.by_pairs(cases.images_NF, cases.texts_MF[cases.text_P], image_P=cases.case_P, text_P=pairs)
    standings = images.take(cases.case_P), texts
    return _both("instance", standings, np.ones(len(cases.ids), dtype=bool), len(cases.images_NF) > 1)


def _by_label(cases: RetrievalCases) -> list[Way]:
    """Where no case has a label, or all have the same, no query has a wrong answer, and nothing is computed."""
    there_N = cases.label_N >= 0
    pairs = np.flatnonzero(there_N[cases.case_P])
    nothing = np.zeros(len(cases.case_P))
    standings = [r.Standing(0, nothing.astype(int), nothing.astype(int), nothing, nothing)] * 2
    defined = len(set(cases.label_N[there_N].tolist())) > 1
    if defined:
        images, texts = r.by_class(
            cases.images_NF[there_N],
            cases.texts_MF[cases.text_P[pairs]],
            image_N=cases.label_N[there_N],
            text_M=cases.label_N[cases.case_P[pairs]],
        )
        place_N = np.cumsum(there_N) - 1
        at_P = np.where(there_N[cases.case_P], np.cumsum(there_N[cases.case_P]) - 1, 0)
        standings = [images.take(np.maximum(place_N, 0)[cases.case_P]), texts.take(at_P)]
    return _both("label", standings, there_N, defined)


def _both(
    level: Level, standings: tuple[r.Standing, ...] | list[r.Standing], there_N: Bools, defined: bool
) -> list[Way]:
    return [
        Way(level, direction, standing, there_N, defined)
        for direction, standing in zip(DIRECTIONS, standings, strict=True)
    ]
