"""What a task's scores over the nodes of a label tree mean: probabilities, calibrated ones, and answers.

Axes in names: B case in a batch, S look at the same cases, K class (node of the tree).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from consilium.core.answers import FAR, UNKNOWN, Calibration
from consilium.core.contracts import Batch, Look, Prediction
from consilium.core.labels import LabelTree
from consilium.core.task import Task


class Answering(Task):
    """The abstract base of tasks that score classes; such a task says how a case becomes scores.

    A prediction has ``logits`` and ``probabilities`` [B, K], and of one label a case ``conditionals`` [B, K]: the
    probability of a node among its siblings, whose product along a path is the path's in ``probabilities``. Of several
    looks it also has ``disagreement`` [B]. A task that measures distances adds ``distances`` [B, K] to the nodes.
    """

    disagrees = False  # whether every answer has a ``disagreement``, also to a single look
    temperatures_K: Tensor
    offsets_K: Tensor
    paths_KK: Tensor | None

    def __init__(self, labels: LabelTree, *, multi_label: bool, threshold: float = 0.5) -> None:
        """``threshold``: with ``multi_label``, the probability from which on a label is given."""
        super().__init__()
        self.labels = labels
        self.threshold = self._given_threshold = threshold
        self.multi_label = multi_label
        self.calibration = Calibration()
        # Not saved: they belong to the bundle's manifest. Flat, every path is its own label.
        self.register_buffer("temperatures_K", torch.ones(len(labels)), persistent=False)
        self.register_buffer("offsets_K", torch.zeros(len(labels)), persistent=False)
        paths_KK = torch.from_numpy(labels.ancestry_MM).float() if labels.nested else None
        self.register_buffer("paths_KK", paths_KK, persistent=False)

    def logits(self, batch: Batch) -> Tensor:
        """Scores [B, K] before softmax among siblings (single label) or sigmoid (multi-label)."""
        raise NotImplementedError

    def calibrate(self, calibration: Calibration) -> None:
        """Give probabilities and answers as validation taught."""
        self.calibration = calibration
        temperatures = [
            calibration.temperatures.get(self.labels.name_of(self.labels.parent(node)), 1.0)
            for node in range(len(self.labels))
        ]
        device = self.temperatures_K.device
        self.temperatures_K = torch.tensor(temperatures, device=device)
        offsets = [calibration.offsets.get(name, 0.0) for name in self.labels.names]
        self.offsets_K = torch.tensor(offsets, device=device)
        chosen = calibration.thresholds[0] if self.multi_label and calibration.thresholds else None
        self.threshold = self._given_threshold if chosen is None else chosen

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        """``logits``, ``conditionals`` (of one label a case: among siblings) and ``probabilities``, all [B, K]."""
        return self.prediction(self.logits(batch).float())

    def combine(self, looks: Sequence[tuple[Look, Prediction]]) -> Prediction:
        """What several looks at the same cases say together: the mean of their probabilities, uncalibrated.

        With one label a case also their ``disagreement`` [B]: the mutual information between look and answer in nats,
        the entropy of the mean of their probabilities less the mean of their entropies (Houlsby et al., "Bayesian
        active learning for classification and preference learning", 2011, arXiv:1112.5745). It is 0 where all looks
        say the same. Distances are the means of those of the looks.
        """
        seen = [prediction.arrays for _, prediction in looks]
        if self.multi_label:
            return Prediction({name: torch.stack([arrays[name] for arrays in seen]).mean(0) for name in seen[0]})
        together = self.mixed([self.log_paths(arrays["logits"]) for arrays in seen]).arrays
        distances = [arrays["distances"] for arrays in seen if "distances" in arrays]
        return Prediction({**together, **({"distances": torch.stack(distances).mean(0)} if distances else {})})

    def mixed(self, log_paths: Sequence[Tensor]) -> Prediction:
        """The mean of probabilities of paths, given as logarithms [..., K] each, and their ``disagreement`` [...]."""
        log_paths_SBK = torch.stack(list(log_paths))
        mean_BK = log_paths_SBK.logsumexp(0) - math.log(len(log_paths_SBK))
        leaves = list(self.labels.leaf_ids)
        disagreement_B = _entropy(mean_BK[..., leaves]) - _entropy(log_paths_SBK[..., leaves]).mean(0)
        # The softmax among siblings divides the mean of a path by that of its parent.
        return Prediction({**self.prediction(mean_BK).arrays, "disagreement": disagreement_B.clamp_min(0.0)})

    def scaled(self, logits_BK: Tensor) -> Tensor:
        """Scores [..., K] as the calibration has them."""
        return logits_BK / self.temperatures_K + self.offsets_K

    def log_paths(self, logits_BK: Tensor) -> Tensor:
        """The logarithm of the probability of every path by scores [..., K]."""
        return self._log_paths(self._log_shares(logits_BK))

    def prediction(self, logits_BK: Tensor) -> Prediction:
        """What scores [B, K] say, by the calibration."""
        if self.multi_label:
            return Prediction({"logits": logits_BK, "probabilities": self.scaled(logits_BK).sigmoid()})
        log_shares_BK = self._log_shares(self.scaled(logits_BK))
        arrays = {"conditionals": log_shares_BK.exp(), "probabilities": self._log_paths(log_shares_BK).exp()}
        return Prediction({"logits": logits_BK, **arrays})

    def _log_shares(self, logits_BK: Tensor) -> Tensor:
        """Log of the softmax among siblings."""
        log_shares_BK = torch.empty_like(logits_BK)
        for group in self.labels.siblings:
            ids = list(group.ids)
            log_shares_BK[..., ids] = logits_BK[..., ids].log_softmax(-1)
        return log_shares_BK

    def _log_paths(self, log_shares_BK: Tensor) -> Tensor:
        """Log of the probability of every path: the sum down to its node."""
        return log_shares_BK if self.paths_KK is None else log_shares_BK @ self.paths_KK.T

    def records(self, prediction: Prediction) -> list[dict[str, Any]]:
        """Per case ``label`` (a node or "unknown"), its ``probability``, the likeliest ``path`` and ``probabilities``.

        The path goes down to a leaf whatever the answer is. Where distances are measured, every step of it has its
        ``distance``, and the case has that of the last (None: no training case has the label). Of several looks there
        is also their ``disagreement``. Multi-label: ``labels`` from the threshold on, and ``probabilities``.
        """
        probabilities_BK = prediction.arrays["probabilities"].cpu().numpy()
        rows = [[round(value, 6) for value in row] for row in probabilities_BK.tolist()]
        named = [dict(zip(self.labels.names, row, strict=True)) for row in rows]
        if self.multi_label:
            several = [
                {"labels": [label for label, p in own.items() if p >= self.threshold], "probabilities": own}
                for own in named
            ]
            doubts = self._doubts(prediction)
            return [{**own, **doubt} for own, doubt in zip(several, doubts, strict=True)] if doubts else several
        distances = prediction.arrays.get("distances")
        distances_BK = None if distances is None else distances.cpu().numpy()
        doubts = self._doubts(prediction)
        answers = self.calibration.answers(probabilities_BK, labels=self.labels, distances_NM=distances_BK)
        records: list[dict[str, Any]] = []
        for own, path, node in zip(named, answers.paths_NL.tolist(), answers.nodes_N.tolist(), strict=True):
            label = UNKNOWN if node < 0 else self.labels.names[node]
            sure = None if node < 0 else own[label]
            way = [step for step in path if step >= 0]
            steps = [{"label": self.labels.names[step], "probability": own[self.labels.names[step]]} for step in way]
            further: dict[str, Any] = {}
            if distances_BK is not None:
                far = [_told(distances_BK[len(records), step]) for step in way]
                steps = [{**step, "distance": own_far} for step, own_far in zip(steps, far, strict=True)]
                further["distance"] = far[-1]
            if doubts:
                further |= doubts[len(records)]
            records.append({"label": label, "probability": sure, **further, "path": steps, "probabilities": own})
        return records

    def _doubts(self, prediction: Prediction) -> list[dict[str, float]]:
        """How much the looks or members disagree about each case; [] where there is one."""
        if (disagreement := prediction.arrays.get("disagreement")) is None:
            return []
        return [{"disagreement": round(value, 6)} for value in disagreement.tolist()]

    def about(self) -> str:
        """The labels."""
        return repr(self.labels)

    def columns(self, *, looks: int = 1) -> list[str]:
        """The answer, its probability, further signs of doubt, and the probability of every class."""
        further = ["distance"] if self.calibration.distances else []
        if self.disagrees or (looks > 1 and not self.multi_label):
            further.append("disagreement")
        return ["label", "probability", *further, *(f"p_{label}" for label in self.labels.names)]

    def row(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Several labels are joined by semicolons."""
        label = record.get("label", ";".join(record.get("labels", [])))
        named = {f"p_{name}": value for name, value in record.get("probabilities", {}).items()}
        own = {name: record[name] for name in ("distance", "disagreement") if name in record}
        return {"label": label, "probability": record.get("probability", ""), **own, **named}


def _told(distance: float) -> float | None:
    """A distance; None where there is nothing to be near to."""
    return None if distance >= FAR else round(float(distance), 4)


def _entropy(log_p: Tensor) -> Tensor:
    """In nats, of the distributions in the last axis."""
    return -(log_p.exp() * log_p).sum(-1)
