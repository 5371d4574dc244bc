"""The family ``toy``: how bright an image is, learned by one linear layer on its mean colour.

A case teaches by its metadata column ``brightness``; the task needs no label. It answers with a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from consilium.core.contracts import Batch, Look, Needs, ParameterGroup, Prediction, StepOutput
from consilium.core.errors import ConfigError, DataError
from consilium.core.evaluation import Evaluation, Evaluator, Interval, Outputs
from consilium.core.section import Knowledge, TaskSection
from consilium.core.task import Task
from consilium.data.cases.cases import Cases, Studied
from consilium.data.config import ImageConfig
from consilium.evaluation.config import EvaluationConfig
from consilium.evaluation.report.parts import ReportParts
from consilium.tasks.family import Family, Member


class ToySection(TaskSection):
    """The ``task`` section."""

    kind: Literal["toy"] = "toy"
    scale: float = 1.0

    @property
    def needs(self) -> Needs:
        return Needs(meta=("brightness",))

    @property
    def groups(self) -> tuple[str, ...]:
        return ("layer",)

    @property
    def monitor(self) -> str:
        return "error"

    @property
    def gives(self) -> tuple[str, ...]:
        return ("brightness",)


class ToyKnowledge(Knowledge):
    """The mean of what is learned."""

    mean: float


class Toy(Task):
    """One layer on the mean colour."""

    def __init__(self, section: ToySection, knowledge: ToyKnowledge) -> None:
        super().__init__()
        self.section, self.knowledge = section, knowledge
        self.layer = nn.Linear(3, 1)

    def step(self, batch: Batch) -> StepOutput:
        assert batch.targets_B is not None
        return StepOutput((self._answers(batch) - batch.targets_B).square().mean())

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        return Prediction({"brightness": self._answers(batch)})

    def _answers(self, batch: Batch) -> Tensor:
        colours_BC = batch.views.pixels[:, 0].mean((2, 3))
        answers_B: Tensor = self.layer(colours_BC)[:, 0] * self.section.scale + self.knowledge.mean
        return answers_B

    def combine(self, looks: Sequence[tuple[Look, Prediction]]) -> Prediction:
        return Prediction({"brightness": torch.stack([own.arrays["brightness"] for _, own in looks]).mean(0)})

    def records(self, prediction: Prediction) -> list[dict[str, Any]]:
        return [{"brightness": round(value, 6)} for value in prediction.arrays["brightness"].tolist()]

    def parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup("layer", list(self.layer.parameters()))]


class ToyEvaluator:
    """Judges by the mean absolute error."""

    metric_names = ("error", "spread")

    def quick(self, outputs: Outputs) -> dict[str, float | None]:
        missed_N = np.abs(outputs.arrays["brightness"] - outputs.known_targets)
        return {"error": float(missed_N.mean()), "spread": float(outputs.arrays["brightness"].std())}

    def evaluate(self, outputs: Outputs, *, split: str) -> Evaluation:
        metrics = self.quick(outputs)
        rows = [{"id": name} for name in outputs.ids[:2]]
        intervals = {"error": Interval(metrics["error"] or 0.0)}
        return Evaluation(split, len(outputs.ids), metrics, intervals, {"shown": rows}, len(set(outputs.groups)))

    def higher_is_better(self, metric: str) -> bool:
        if metric not in self.metric_names:
            raise ConfigError(f"'{metric}' is not a metric of this task; its metrics are: error, spread.")
        return metric == "spread"

    def check_monitor(self, metric: str) -> None:
        """Each may choose."""


class ToyFamily(Family[ToySection, ToyKnowledge, Toy]):
    """What the house asks about ``toy``."""

    knowledge = ToyKnowledge

    def study(
        self, section: ToySection, cases: Cases, *, known: ToyKnowledge | None, learns: bool
    ) -> Studied[ToyKnowledge]:
        column = cases.table.columns().get("brightness")
        if column is None:
            raise DataError("no case has the metadata column 'brightness', which a toy learns.")
        targets = np.array([float(value or "nan") for value in column], dtype=np.float32)
        train = cases.rows["train"]
        if known is None or learns:
            known = ToyKnowledge(training_cases=len(train), mean=float(targets[train].mean()))
        return Studied(replace(cases), known, targets)

    def build(
        self,
        section: ToySection,
        knowledge: ToyKnowledge,
        *,
        image: ImageConfig,
        members: Mapping[str, Member],
        weights: bool,
    ) -> Toy:
        return Toy(section, knowledge)

    def evaluator(self, section: ToySection, knowledge: ToyKnowledge, *, evaluation: EvaluationConfig) -> Evaluator:
        return ToyEvaluator()

    def report(self, section: ToySection, knowledge: ToyKnowledge) -> ReportParts:
        return ReportParts(
            about="brightness",
            intended_use="A toy.",
            pipeline_tag="image-to-text",
            headlines=("error",),
            curves=("error",),
            summary=lambda evaluation, confidence: [f"It is off by {evaluation.metrics['error']:.3f} on average."],
        )


FAMILY = ToyFamily()
