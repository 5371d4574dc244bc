"""The cascade: one flat network for every inner node of a label tree, asked one after another.

Axes in names: B case in a batch, K class (node of the tree).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from consilium.core.contracts import Batch, ParameterGroup, StepOutput
from consilium.core.errors import DataError
from consilium.core.labels import LabelTree
from consilium.data.config import ImageConfig
from consilium.tasks.answers.answering import Answering
from consilium.tasks.answers.images import common_image
from consilium.tasks.answers.members import OwnNormalisation
from consilium.tasks.answers.targets import LabelKnowledge
from consilium.tasks.classify.nodes import choices, node_folder
from consilium.tasks.classify.task import Classify
from consilium.tasks.family import Member

LEAST = 1e-3  # the probability of the path to a node below which its network is not asked


class Cascade(Answering):
    """The trained networks of the inner nodes as one task over the whole tree.

    It takes images with values in [0, 1], and each network sees them with its own mean and deviation. A network
    is asked about a case only where the path to its node has at least the probability ``LEAST`` by the uncalibrated
    scores; elsewhere its scores are 0, so that the children share equally what little probability there is. That is
    decided case by case: an answer does not depend on the batch.
    """

    def __init__(
        self, labels: LabelTree, *, networks: Mapping[str, Classify], images: Mapping[str, ImageConfig]
    ) -> None:
        """``networks`` and the ``images`` they take, by the name of their node; those of ``choices(labels)``."""
        super().__init__(labels, multi_label=False)
        if not networks:
            raise DataError(f"the labels {', '.join(labels.names)} leave a cascade nothing to tell apart.")
        for name, group in choices(labels).items():
            children = tuple(labels.names[node] for node in group.ids)
            if name not in networks:
                raise DataError(f"the cascade has no network for the node '{name}'.")
            if networks[name].labels.names != children:
                found = ", ".join(networks[name].labels.names)
                raise DataError(f"the network of '{name}' tells apart {found}; its children are {', '.join(children)}.")
        self.image = common_image(images)
        self.names = tuple(networks)
        self.networks = nn.ModuleList(networks.values())
        self.normalised = OwnNormalisation([images[name] for name in self.names])

    def logits(self, batch: Batch) -> Tensor:
        """Scores [B, K], those of siblings from the network of their parent."""
        logits_BK = torch.zeros(len(batch), len(self.labels), device=batch.views.there_BV.device)
        log_paths_BK = torch.zeros_like(logits_BK)
        for group in self.labels.siblings:  # from the root down, so that every parent comes before its children
            ids, name = list(group.ids), self.labels.name_of(group.parent)
            log_here_B = logits_BK.new_zeros(len(batch)) if group.parent is None else log_paths_BK[:, group.parent]
            asked = torch.nonzero(log_here_B >= math.log(LEAST))[:, 0]
            if name in self.names and len(asked):
                logits_BK[asked[:, None], asked.new_tensor(ids)] = self._scores(
                    name, batch if len(asked) == len(batch) else batch.take(asked)
                )
            log_paths_BK[:, ids] = log_here_B[:, None] + logits_BK[:, ids].log_softmax(1)
        return logits_BK

    def step(self, batch: Batch) -> StepOutput:
        """Never: its networks are trained one after another, each as a flat run."""
        raise NotImplementedError

    def parameter_groups(self) -> list[ParameterGroup]:
        """The parameters of each network."""
        named = zip(self.names, self.networks, strict=True)
        return [ParameterGroup(name, list(network.parameters())) for name, network in named]

    def _scores(self, name: str, batch: Batch) -> Tensor:
        number = self.names.index(name)
        network: Classify = self.networks[number]  # type: ignore[assignment]
        return network.logits(self.normalised(number, batch)).float()


def build_cascade(knowledge: LabelKnowledge, members: Mapping[str, Member]) -> Cascade:
    """The networks in the folder of a cascade as one task, calibrated; one that is missing is a DataError."""
    networks, images = {}, {}
    for node in choices(knowledge.tree):
        member = members.get(node_folder(node))
        if member is None or not isinstance(member.task, Classify):
            raise DataError(f"the cascade lacks {node_folder(node)}, the network of '{node}'.")
        networks[node], images[node] = member.task, member.image
    cascade = Cascade(knowledge.tree, networks=networks, images=images)
    cascade.calibrate(knowledge.calibration)
    return cascade
