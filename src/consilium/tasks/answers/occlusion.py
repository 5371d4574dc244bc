"""Which places of an image an answer depends on: parts of it are covered one after another.

Axes in names: H height, W width, C channel (RGB), P place along a side, S case shown, M node of the tree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from consilium.core.errors import ImageError, MissingExtraError
from consilium.core.evaluation import Outputs
from consilium.core.reporter import Reporter
from consilium.data.cases.cases import Studied
from consilium.data.config import ImageConfig
from consilium.data.images.pillow import lossless
from consilium.data.images.reading import load_view, read_bytes
from consilium.evaluation.config import ReportConfig
from consilium.evaluation.labels.saliency import Said, SaliencyMap, choose
from consilium.evaluation.report.page import main_split
from consilium.tasks.answers.answering import Answering
from consilium.tasks.family import Ask

PLACES = 6  # along each side
BLUR = 2  # deviation of the blur, in places


def saliency_maps(
    task: Answering,
    studied: Studied[Any],
    outputs: Mapping[str, Outputs],
    *,
    image: ImageConfig,
    ask: Ask,
    report: ReportConfig,
    reporter: Reporter,
) -> list[SaliencyMap]:
    """Occlusion sensitivity (Zeiler & Fergus, 2014, arXiv:1311.2901) of a few answers in the split told at length.

    A soft patch covers one of ``PLACES`` x ``PLACES`` places of the case's first image, and the map holds by how much
    the probability of the label falls. Images that cannot be read are reported and left out.
    """
    cases = studied.cases
    if not report.images:
        return []
    split = main_split(outputs)
    chosen = choose(
        outputs[split],
        labels=task.labels,
        thresholds=task.calibration.thresholds,
        limits=task.calibration.distances,
        threshold=task.threshold,
        count=report.saliency,
    )
    shown: list[tuple[Said, int]] = []
    covered = []
    for said in chosen:
        row = int(cases.rows[split][said.case])
        if not (views := cases.table.images(row)):
            continue
        try:
            covered.append(_covered(views, image=image))
            shown.append((said, row))
        except (ImageError, MissingExtraError) as error:
            reporter.line(f"note: the report has no map of case {cases.table.ids[row]}: {error}")
    if not shown:
        return []
    looks = 1 + PLACES**2
    arrays = ask(_Looks(covered), np.arange(len(covered) * looks), progress=partial(reporter.progress, "saliency"))
    probabilities_SLM = arrays["probabilities"].reshape(len(covered), looks, -1)
    maps = []
    for (said, row), own, probabilities_LM in zip(shown, covered, probabilities_SLM, strict=True):
        whole, *others = probabilities_LM[:, said.label].tolist()
        found = SaliencyMap(
            id=cases.table.ids[row],
            truth=", ".join(cases.table.labels[row]),
            label=task.labels.names[said.label],
            right=said.right,
            probability=whole,
            drops_PP=whole - np.array(others).reshape(PLACES, PLACES),
            image_HWC=own.image_HWC,
        )
        maps.append(found)
    return maps


@dataclass(frozen=True)
class _Covered:
    """The first view of a case as the model sees it, with what covers it; the other views are never covered.

    The cover is the image itself, blurred until no detail is left: a patch of one colour would be a shape of its own,
    above all on the black background of a scan.
    """

    image_HWC: np.ndarray
    others: Sequence[bytes]

    @cached_property
    def blurred_HWC(self) -> np.ndarray:
        from PIL import Image, ImageFilter

        height, width = self.image_HWC.shape[:2]
        radius = (BLUR * width / PLACES, BLUR * height / PLACES)
        return np.asarray(Image.fromarray(self.image_HWC).filter(ImageFilter.GaussianBlur(radius)))

    def views(self, place: int | None) -> list[bytes]:
        """The views as files, with a place of the first one covered; None: nothing is."""
        if place is None:
            return [lossless(self.image_HWC, compressed=False), *self.others]
        height, width = self.image_HWC.shape[:2]
        cover_HW = np.outer(patch(height)[place // PLACES], patch(width)[place % PLACES])
        pixels_HWC = self.image_HWC + cover_HW[..., None] * (self.blurred_HWC.astype(float) - self.image_HWC)
        return [lossless(np.rint(pixels_HWC).astype(np.uint8), compressed=False), *self.others]


@dataclass(frozen=True)
class _Looks:
    """Rows of images: of each case the whole image, then every place covered."""

    cases: Sequence[_Covered]

    def images(self, row: int) -> list[bytes]:
        case, look = divmod(row, 1 + PLACES**2)
        return self.cases[case].views(look - 1 if look else None)


def patch(size: int) -> np.ndarray:
    """How much each place covers along a side of ``size`` pixels, [P, size]: its cell wholly, fading out beside it."""
    distance = np.abs((np.arange(size) + 0.5) / size * PLACES - 0.5 - np.arange(PLACES)[:, None])
    return np.asarray(np.clip(2 - 2 * distance, 0, 1))


def _covered(images: Sequence[str | bytes], *, image: ImageConfig) -> _Covered:
    """The views of a case at the size that the model sees, each decoded once."""
    views = []
    for view in images:
        name = view if isinstance(view, str) else "embedded image"
        views.append(load_view(read_bytes(view), name=name, image=image, box=None))
    return _Covered(views[0], [lossless(view, compressed=False) for view in views[1:]])
