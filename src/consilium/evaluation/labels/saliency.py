"""Which answers a report explains, and their maps as pictures.

Axes in names: N case, M node of the tree, H height, W width, C channel (RGB), P place along a side, L look.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from consilium.core.answers import answer
from consilium.core.evaluation import Outputs
from consilium.core.labels import LabelTree

_FLAT = 0.05  # a fall of the probability that is worth telling
_PALEST = 200  # grey value that black has under a map, so that anatomy cannot be taken for heat
_HEAT = (74, 20, 110)  # purple: its lightness alone carries the scale, on paper and for colour-blind readers
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")


@dataclass(frozen=True)
class Said:
    """A label that the model gave to a case, both as numbers, and whether the label is right."""

    case: int
    label: int
    right: bool


@dataclass(frozen=True)
class OcclusionMap:
    """By how much covering each place of an image lowers the probability of a label.

    ``drops_PP`` goes over equal cells of the image, row by row from the top; below 0 covering raises the probability.
    ``image_HWC`` is uint8 in [0, 255] as the model sees it, ``probability`` that of the label with nothing covered.
    """

    label: str
    probability: float
    drops_PP: np.ndarray
    image_HWC: np.ndarray

    @property
    def drop(self) -> float:
        """The largest fall."""
        return max(float(self.drops_PP.max()), 0.0)

    @property
    def rise(self) -> float:
        """The largest rise."""
        return max(float(-self.drops_PP.min()), 0.0)

    @property
    def flat(self) -> bool:
        """Whether no single place matters."""
        return self.drop < _FLAT

    @property
    def rises(self) -> bool:
        """Whether the label gains by something being covered."""
        return self.rise >= _FLAT

    @property
    def place(self) -> str:
        """Where the largest fall is, in words: ``top left``."""
        row, column = np.unravel_index(int(self.drops_PP.argmax()), self.drops_PP.shape)
        rows, columns = self.drops_PP.shape
        names = (_ROWS[int((row + 0.5) / rows * 3)], _COLUMNS[int((column + 0.5) / columns * 3)])
        return "centre" if names == ("middle", "centre") else " ".join(names)

    def image(self, *, size: int) -> bytes:
        """What the model sees as a PNG whose longer side is ``size``."""
        return _png(self.image_HWC, self._scaled(size))

    def heat(self, *, size: int) -> bytes:
        """The map over the pale image as a PNG whose longer side is ``size``; the darker, the larger the fall."""
        from PIL import Image

        width, height = self._scaled(size)
        pale_HW = _PALEST + np.asarray(Image.fromarray(self.image_HWC).convert("L").resize((width, height))) * (
            (255 - _PALEST) / 255
        )
        falls_PP = np.clip(self.drops_PP / max(self.drop, _FLAT), 0, 1).astype(np.float32)
        share_HW = np.asarray(Image.fromarray(falls_PP).resize((width, height), Image.Resampling.BILINEAR))[..., None]
        shade_HWC = 1 - share_HW * (1 - np.array(_HEAT) / 255)
        return _png((pale_HW[..., None] * shade_HWC).astype(np.uint8), (width, height))

    def _scaled(self, size: int) -> tuple[int, int]:
        """Width and height of a picture."""
        height, width = self.image_HWC.shape[:2]
        zoom = size / max(height, width)
        return max(1, round(width * zoom)), max(1, round(height * zoom))


@dataclass(frozen=True)
class SaliencyMap(OcclusionMap):
    """The map of a label that was given to a case whose true labels are known."""

    id: str
    truth: str
    right: bool


def drops(probabilities_L: np.ndarray) -> np.ndarray:
    """The falls [P, P] of a probability by that of the whole image, then of every place covered, row by row."""
    side = math.isqrt(len(probabilities_L) - 1)
    return np.asarray(probabilities_L[0] - probabilities_L[1:].astype(float)).reshape(side, side)


def _png(pixels_HWC: np.ndarray, size: tuple[int, int]) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels_HWC).resize(size).save(out, "PNG")
    return out.getvalue()


def choose(
    outputs: Outputs,
    *,
    labels: LabelTree,
    thresholds: Iterable[float | None],
    threshold: float,
    count: int,
    limits: Sequence[float] = (),
) -> list[Said]:
    """The answers to explain: the surest errors (half of them, at most one of a group), then right answers.

    Of a label with right answers the one of middling probability is taken, which shows what is usual; labels that the
    errors named come first, so that both can be compared, then the most frequent. ``thresholds`` are those of the
    levels of a tree, ``limits`` those of their distances, ``threshold`` that of multi-label tasks. Cases that were
    answered with "unknown", or below where their own label stops, are neither.
    """
    probabilities_NM, targets = outputs.arrays["probabilities"], outputs.known_targets
    said_NM, right_NM, wrong_NM = np.zeros((3, *probabilities_NM.shape), dtype=bool)
    if targets.ndim == 2:
        said_NM = probabilities_NM >= threshold
        right_NM, wrong_NM = said_NM & (targets > 0.5), said_NM & (targets < 0.5)
    else:
        nodes_N = answer(
            probabilities_NM,
            labels=labels,
            thresholds=tuple(thresholds),
            distances_NM=outputs.arrays.get("distances"),
            limits=limits,
        ).nodes_N
        (known,) = np.nonzero((nodes_N >= 0) & (targets >= 0))
        said, true = nodes_N[known], targets[known]
        right_NM[known, said] = labels.ancestry_MM[true, said]
        wrong_NM[known, said] = ~(labels.ancestry_MM[true, said] | labels.ancestry_MM[said, true])
    errors: dict[str, Said] = {}
    for case, label in _surest_first(wrong_NM, probabilities_NM):
        errors.setdefault(outputs.groups[case], Said(case, label, right=False))
    wrong = list(errors.values())[: -(-count // 2)]
    usual: dict[int, Said] = {}
    frequent = np.argsort(-right_NM.sum(0), kind="stable").tolist()
    for label in dict.fromkeys([*(said.label for said in wrong), *frequent]):
        own = [case for case, _ in _surest_first(right_NM[:, [label]], probabilities_NM[:, [label]])]
        if own:
            usual[label] = Said(own[len(own) // 2], label, right=True)
    return [*wrong, *list(usual.values())[: count - len(wrong)]]


def _surest_first(there_NM: np.ndarray, probabilities_NM: np.ndarray) -> list[tuple[int, int]]:
    """The cases and labels that are there, the highest probability first."""
    cases, labels = np.nonzero(there_NM)
    order = np.argsort(-probabilities_NM[cases, labels], kind="stable")
    return list(zip(cases[order].tolist(), labels[order].tolist(), strict=True))
