"""What validation teaches about probabilities: temperatures, and the thresholds from which on an answer is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import torch

from consilium.core.answers import Calibration
from consilium.core.evaluation import Outputs
from consilium.evaluation.config import AnswersConfig
from consilium.evaluation.labels.calibration import choose_distances, choose_thresholds, fit_temperatures
from consilium.tasks.answers.answering import Answering
from consilium.tasks.answers.targets import LabelKnowledge
from consilium.tasks.family import Settled

KnowledgeT = TypeVar("KnowledgeT", bound=LabelKnowledge)


def settle_answers(
    task: Answering, knowledge: KnowledgeT, outputs: Mapping[str, Outputs], *, config: AnswersConfig
) -> Settled[KnowledgeT]:
    """Calibrate the task on the outputs of ``val``; all outputs come back with the probabilities as they then are."""
    if task.multi_label:
        return Settled(knowledge.model_copy(update={"calibration": Calibration()}), outputs)
    val = outputs["val"]
    logits_NM, targets_N = val.arrays["logits"], val.known_targets
    calibration = task.calibration  # empty, but for a router that grew
    if config.calibrate:
        fitted = fit_temperatures(logits_NM, targets_N, labels=task.labels)
        temperatures = {**fitted, **calibration.temperatures}
        calibration = calibration.model_copy(update={"temperatures": temperatures})
    distances_NM = val.arrays.get("distances")
    if config.distance is not None and distances_NM is not None:
        limits = choose_distances(
            val.arrays["probabilities"],
            distances_NM,
            labels=task.labels,
            share=config.distance.share,
            given=calibration.distances,
        )
        calibration = calibration.model_copy(update={"distances": limits})
    task.calibrate(calibration)
    wanted, given = config.wanted_accuracy, []
    if wanted is None:  # a router that grew keeps its thresholds, and needs some for levels that it did not have
        wanted, given = calibration.wanted_accuracy, calibration.thresholds
    if wanted is not None:
        thresholds = choose_thresholds(
            recalibrated(task, val).arrays["probabilities"],
            targets_N,
            labels=task.labels,
            wanted_accuracy=wanted,
            given=given,
            distances_NM=distances_NM,
            limits=calibration.distances,
        )
        calibration = calibration.model_copy(update={"thresholds": thresholds, "wanted_accuracy": wanted})
        task.calibrate(calibration)
    settled = knowledge.model_copy(update={"calibration": calibration})
    return Settled(settled, {split: recalibrated(task, own) for split, own in outputs.items()})


def recalibrated(task: Answering, outputs: Outputs) -> Outputs:
    """The same outputs with the probabilities that the task gives now."""
    arrays = task.prediction(torch.from_numpy(outputs.arrays["logits"]).to(task.temperatures_K.device)).arrays
    return replace(outputs, arrays={**outputs.arrays, **{name: own.cpu().numpy() for name, own in arrays.items()}})
