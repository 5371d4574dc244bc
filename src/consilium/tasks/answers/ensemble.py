"""Several trained networks over the same labels as one: the mean of their probabilities, and how far they disagree.

Axes in names: B case in a batch, S member, K class (node of the tree).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from consilium.core.contracts import Batch, Look, MetaCoder, ParameterGroup, Prediction, StepOutput, TextCoder
from consilium.core.labels import LabelTree
from consilium.data.config import ImageConfig
from consilium.tasks.answers.answering import Answering
from consilium.tasks.answers.config import LabelSection
from consilium.tasks.answers.members import OwnNormalisation
from consilium.tasks.answers.targets import LabelKnowledge
from consilium.tasks.family import Member

EnsembleT = TypeVar("EnsembleT", bound="Ensemble")


class Ensemble(Answering):
    """Trained members, each of which answers by its own calibration (deep ensembles: Lakshminarayanan et al., 2017).

    It takes images with values in [0, 1], and each member sees them with its own mean and deviation. Its scores are the
    logarithms of the mean probabilities, so that it can be calibrated itself. ``disagreement`` [B] is the mutual
    information between member and answer in nats (of several labels the mean over labels): 0 where all say the same.
    """

    disagrees = True

    def __init__(
        self,
        labels: LabelTree,
        *,
        multi_label: bool,
        threshold: float,
        members: Sequence[Answering],
        images: Sequence[ImageConfig],
    ) -> None:
        """``images`` are those that each member takes."""
        super().__init__(labels, multi_label=multi_label, threshold=threshold)
        self.members = nn.ModuleList(members)
        self.normalised = OwnNormalisation(images)
        self.views = members[0].views

    def text_coder(self) -> TextCoder | None:
        """That of the first member: all read texts alike."""
        return self._first.text_coder()

    def meta_coder(self) -> MetaCoder | None:
        """That of the first member: all read metadata alike."""
        return self._first.meta_coder()

    @property
    def _first(self) -> Answering:
        first: Answering = self.members[0]  # type: ignore[assignment]
        return first

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        """What the members say together."""
        members: Any = self.members
        return self.averaged([own.predict(self.normalised(number, batch)) for number, own in enumerate(members)])

    def averaged(self, predictions: Sequence[Prediction]) -> Prediction:
        """The predictions of the members, in their order, as one."""
        arrays = [prediction.arrays for prediction in predictions]
        together = self.mean_of([own["logits"] for own in arrays]).arrays
        distances = [own["distances"] for own in arrays if "distances" in own]
        return Prediction({**together, **({"distances": torch.stack(distances).mean(0)} if distances else {})})

    def mean_of(self, logits: Sequence[Tensor]) -> Prediction:
        """The mean of what the members' scores [..., K] mean by their own calibrations."""
        members: Any = self.members
        scaled = [member.scaled(own) for member, own in zip(members, logits, strict=True)]
        if not self.multi_label:
            return self.mixed([self.log_paths(own) for own in scaled])
        scaled_SBK = torch.stack(scaled)
        log_yes_SBK, log_no_SBK = functional.logsigmoid(scaled_SBK), functional.logsigmoid(-scaled_SBK)
        log_yes_BK, log_no_BK = log_yes_SBK.logsumexp(0), log_no_SBK.logsumexp(0)  # times the number of members
        found = self.prediction(log_yes_BK - log_no_BK).arrays
        number = math.log(len(scaled))
        disagreement_BK = _binary(log_yes_BK - number, log_no_BK - number) - _binary(log_yes_SBK, log_no_SBK).mean(0)
        return Prediction({**found, "disagreement": disagreement_BK.mean(-1).clamp_min(0.0)})

    def combine(self, looks: Sequence[tuple[Look, Prediction]]) -> Prediction:
        """As of every such task; looks and members disagree together as much as all of them would as members."""
        together = super().combine(looks)
        if self.multi_label:
            return together
        among_B = torch.stack([prediction.arrays["disagreement"] for _, prediction in looks]).mean(0)
        return Prediction({**together.arrays, "disagreement": together.arrays["disagreement"] + among_B})

    def step(self, batch: Batch) -> StepOutput:
        """Never: its members are trained already."""
        raise NotImplementedError

    def parameter_groups(self) -> list[ParameterGroup]:
        """The parameters of each member."""
        return [ParameterGroup(str(number), list(own.parameters())) for number, own in enumerate(self.members)]


def _binary(log_yes: Tensor, log_no: Tensor) -> Tensor:
    """The entropy in nats of yes and no."""
    return -(log_yes.exp() * log_yes + log_no.exp() * log_no)


def built(
    kind: type[EnsembleT], section: LabelSection, knowledge: LabelKnowledge, members: Mapping[str, Member]
) -> EnsembleT:
    """The members in the folder of an ensemble as one task, calibrated."""
    tasks: list[Any] = [member.task for member in members.values()]
    ensemble = kind(
        knowledge.tree,
        multi_label=section.multi_label,
        threshold=section.answers.threshold,
        members=tasks,
        images=[member.image for member in members.values()],
    )
    ensemble.calibrate(knowledge.calibration)
    return ensemble
