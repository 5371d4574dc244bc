"""What the predictions of a fusion mean: of all that a case has, and of every subset of the modalities.

Axes in names: B case in a batch, M modality, K class, S subset of modalities (bit m of its number: modality m is in
it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from consilium.core.contracts import Look, Prediction
from consilium.evaluation.labels.modalities import shapley
from consilium.tasks.answers.answering import Answering
from consilium.tasks.answers.ensemble import Ensemble
from consilium.tasks.fuse.config import FuseConfig


class FuseAnswers(Answering):
    """The abstract base of a fusion and of several together; ``config`` names the modalities."""

    config: FuseConfig

    def of_subsets(self, logits_BSK: Tensor) -> dict[str, Tensor]:
        """The probabilities [B, S, K] of scores for every subset, by the calibration."""
        arrays = self.prediction(logits_BSK.flatten(0, 1)).arrays
        names = ("probabilities",) if self.multi_label else ("probabilities", "conditionals")
        return {f"subset_{name}": arrays[name].reshape(logits_BSK.shape) for name in names}

    def combine(self, looks: Sequence[tuple[Look, Prediction]]) -> Prediction:
        """The mean of the probabilities; of every subset the mean of its scores."""
        together = super().combine([(look, Prediction(_of_classes(seen.arrays))) for look, seen in looks])
        logits_BSK = torch.stack([seen.arrays["subset_logits"] for _, seen in looks]).mean(0)
        further = {"subset_logits": logits_BSK, "there": looks[0][1].arrays["there"]}
        return Prediction({**together.arrays, **further, **self.of_subsets(logits_BSK)})

    def records(self, prediction: Prediction) -> list[dict[str, Any]]:
        """As of every such task; and per case which ``modalities`` it had, what each ``counted``, and ``without`` each.

        ``counted`` are Shapley values of the probability of what is answered (of several labels: of the likeliest
        one), the players being the modalities of the case. ``without`` has the likeliest label and its probability.
        """
        arrays = {name: array.cpu().numpy() for name, array in prediction.arrays.items()}
        leaves = [*range(len(self.labels))] if self.multi_label else list(self.labels.leaf_ids)
        rows, names = super().records(Prediction(_of_classes(prediction.arrays))), self.config.modalities
        for case, record in enumerate(rows):
            own = [place for place, there in enumerate(arrays["there"][case]) if there]
            seen_SK = arrays["subset_probabilities"][case]
            whole = sum(1 << place for place in own)
            answered = leaves[int(seen_SK[whole, leaves].argmax())]
            counted = shapley(seen_SK[:, answered], own)
            record["modalities"] = [names[place] for place in own]
            record["counted"] = {names[place]: round(float(value), 6) for place, value in counted.items()}
            record["without"] = {}
            for place in own if len(own) > 1 else ():
                other_K = seen_SK[whole - (1 << place)]
                best = leaves[int(other_K[leaves].argmax())]
                record["without"][names[place]] = {
                    "label": self.labels.names[best],
                    "probability": round(float(other_K[best]), 6),
                }
        return rows

    def columns(self, *, looks: int = 1) -> list[str]:
        """As of every such task, and what each modality counted."""
        return [*super().columns(looks=looks), "modalities", *(f"counted_{name}" for name in self.config.modalities)]

    def row(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Modalities are joined by semicolons."""
        counted = {f"counted_{name}": value for name, value in record.get("counted", {}).items()}
        return {**super().row(record), "modalities": ";".join(record.get("modalities", [])), **counted}


class FuseEnsemble(FuseAnswers, Ensemble):
    """Several trained fusions as one, also of every subset of the modalities."""

    def averaged(self, predictions: Sequence[Prediction]) -> Prediction:
        """As of every ensemble, and the mean of what the members say of each subset."""
        together = super().averaged(predictions)
        mean = self.mean_of([own.arrays["subset_logits"] for own in predictions])
        further = {"subset_logits": mean.arrays["logits"], "there": predictions[0].arrays["there"]}
        return Prediction({**together.arrays, **further, **self.of_subsets(further["subset_logits"])})


def _of_classes(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What every task with labels predicts."""
    return {name: array for name, array in arrays.items() if name != "there" and not name.startswith("subset_")}
