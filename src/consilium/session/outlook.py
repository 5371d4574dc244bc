"""What will happen in a training, said before its first step."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from consilium.core.contracts import ImageInput
from consilium.core.licenses import license_warnings
from consilium.core.reporter import format_table
from consilium.core.task import Task
from consilium.data.batches.loader import trained_rows
from consilium.data.cases.cases import Cases
from consilium.data.cases.mixture import Mixture, coverage_warnings, mixture_table
from consilium.data.cases.origins import Origins
from consilium.data.config import ImageConfig
from consilium.experiment import Experiment
from consilium.models.weights import parameter_counts
from consilium.training.averaging import average_warnings
from consilium.training.hooks import RunLog
from consilium.training.plan import Plan


@dataclass(frozen=True)
class Outlook:
    """What the report repeats: draws of each source, sources of each label, parts of the model, warnings."""

    tables: dict[str, list[dict[str, Any]]]  # mixture, sources and parts
    warnings: list[str]


def look_ahead(
    experiment: Experiment, cases: Cases, *, mixture: Mixture, plan: Plan, task: Task, log: RunLog
) -> Outlook:
    """Print the mixture over all epochs, the parameters that learn, and what licences of the first weights forbid."""
    epochs = trained_rows(mixture, batches=plan.batches, config=experiment.data.loader)
    table = mixture_table(mixture, cases, column=experiment.data.mixture.source_column, epochs=epochs)
    rows = [asdict(row) for row in table]
    log.line(format_table(rows, title=f"mixture over {sum(count > 0 for count in plan.batches)} epochs"))
    data = experiment.data
    if (copies := data.augmentation.copies) is not None:
        own, *others = copies.shares
        of_copies = "its copy" if len(others) == 1 else f"one of its {len(others)} copies"
        log.line(f"{own:.0%} of the draws show an image itself, {sum(others):.0%} {of_copies}")
    origins = Origins.of(cases.used(), data.mixture.source_column)
    warnings = [
        *origins.warnings(data),
        *coverage_warnings(table, whole_batches=data.mixture.one_source and data.loader.drop_last),
        *average_warnings(experiment.trainer.ema, total_steps=plan.total_steps),
    ]
    for warning in warnings:
        log.line(f"warning: {warning}")
    if idle := experiment.idle:
        log.line(f"note: task.head is fitted in one step, for which these keys mean nothing: {', '.join(idle)}")
    parts = [asdict(part) for part in parameter_counts(task)]
    log.line(format_table(parts, title="parameters"))
    for warning in license_warnings(task.licenses):
        log.line(f"warning: {warning}")
    return Outlook({"mixture": rows, "sources": origins.rows(), "parts": parts}, [*cases.notes, *warnings])


def resolved_image(image: ImageConfig, expected: ImageInput | None, *, log: RunLog) -> ImageConfig:
    """The image config with the statistics that its tower was made for, where they are asked for."""
    if expected is None:
        return image
    if image.statistics == "model":
        own = {"mean": expected.mean, "std": expected.std}
        return image.model_copy(update={**own, "statistics": "given"})
    differs = max(abs(a - b) for a, b in zip(image.mean, expected.mean, strict=True)) > 0.05
    if expected.pretrained and differs:
        log.line(
            f"note: the pretrained tower expects mean {expected.mean} and std {expected.std}, data.image has "
            f"{image.mean} and {image.std}; data.image.statistics: model takes the tower's."
        )
    return image
