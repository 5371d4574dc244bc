"""Which places of an image an answer depends on: parts of it are covered one after another.

Axes in names: S case shown, L look at it, M node of the tree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from consilium.core.errors import ImageError, MissingExtraError
from consilium.core.evaluation import Outputs
from consilium.core.reporter import Reporter
from consilium.data.cases.cases import Studied
from consilium.data.config import ImageConfig
from consilium.data.images.covered import LOOKS, Covered
from consilium.evaluation.config import ReportConfig
from consilium.evaluation.labels.saliency import Said, SaliencyMap, choose, drops
from consilium.evaluation.report.page import main_split
from consilium.tasks.answers.answering import Answering
from consilium.tasks.family import Ask


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

    A soft patch covers one place after another of the case's first image, and the map holds by how much the probability
    of the label falls. Images that cannot be read are reported and left out.
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
            covered.append(_Case.read(views, image=image))
            shown.append((said, row))
        except (ImageError, MissingExtraError) as error:
            reporter.line(f"note: the report has no map of case {cases.table.ids[row]}: {error}")
    if not shown:
        return []
    arrays = ask(_Looks(covered), np.arange(len(covered) * LOOKS), progress=partial(reporter.progress, "saliency"))
    probabilities_SLM = arrays["probabilities"].reshape(len(covered), LOOKS, -1)
    maps = []
    for (said, row), own, probabilities_LM in zip(shown, covered, probabilities_SLM, strict=True):
        found = SaliencyMap(
            label=task.labels.names[said.label],
            probability=float(probabilities_LM[0, said.label]),
            drops_PP=drops(probabilities_LM[:, said.label]),
            image_HWC=own.first.image_HWC,
            id=cases.table.ids[row],
            truth=", ".join(cases.table.labels[row]),
            right=said.right,
        )
        maps.append(found)
    return maps


@dataclass(frozen=True)
class _Case:
    """The first view of a case, and the other ones, which are never covered; each is decoded once."""

    first: Covered
    others: Sequence[bytes]

    @classmethod
    def read(cls, views: Sequence[str | bytes], *, image: ImageConfig) -> _Case:
        first, *others = (Covered.read(view, image=image) for view in views)
        return cls(first, [other.file() for other in others])


@dataclass(frozen=True)
class _Looks:
    """Rows of images: of each case the whole image, then every place covered."""

    cases: Sequence[_Case]

    def images(self, row: int) -> list[bytes]:
        case, look = divmod(row, LOOKS)
        return [self.cases[case].first.file(look), *self.cases[case].others]
