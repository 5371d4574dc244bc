"""Which validation was the best so far, and whether the last one was a gain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from consilium.core.contracts import Progress
from consilium.core.errors import TrainingError
from consilium.core.evaluation import Evaluator

TIE_BREAKER = "log_loss"  # moves with every step, and every label task has it; lower is better
SMALLEST_GAIN = 1e-4  # relative: a tie-breaker that falls by less is as before


@dataclass(frozen=True)
class Monitor:
    """The validation metric that chooses the best weights.

    Where it ties or is undefined, the lower ``tie_breaker`` is better; with neither, the earlier weights stay.
    """

    name: str
    higher_is_better: bool
    tie_breaker: str | None = None

    def record(self, progress: Progress, metrics: Mapping[str, float | None]) -> bool:
        """Note a validation in ``progress``; whether it was a gain: a better metric, or a lower tie-breaker than ever.

        ``progress.best_step`` is its step now if it is the best. Without either figure it is a TrainingError.
        """
        value, tie = metrics[self.name], None if self.tie_breaker is None else metrics[self.tie_breaker]
        if value is None and tie is None:
            raise TrainingError(
                f"trainer.monitor is {self.name}, which is undefined on this validation set (too few cases or "
                "classes). Choose another metric, accuracy or log_loss for instance, or a larger validation split."
            )
        gained = progress.best_step is None or self._order(value) > self._order(progress.best_metric)
        same = self._order(value) == self._order(progress.best_metric)
        if gained or (same and _lower(tie, than=progress.best_tie_breaker)):
            progress.best_metric, progress.best_tie_breaker, progress.best_step = value, tie, progress.step
        if _lower(tie, than=progress.lowest_tie_breaker):
            progress.lowest_tie_breaker, gained = tie, True
        progress.evaluations_without_improvement = 0 if gained else progress.evaluations_without_improvement + 1
        return gained

    def rest(self, validations: int) -> str:
        """Why a training ends after so many validations without a gain."""
        also = "" if self.tie_breaker is None else f", and {self.tie_breaker} has not fallen"
        return f"{self.name} has not improved for {validations} validations{also}"

    def undefined(self) -> str:
        """What to say where the metric has no value on validation."""
        return (
            f"{self.name} is undefined on validation (a class that it needs is absent, or is never predicted); as long "
            f"as it is, {self.tie_breaker} chooses the best weights. trainer.monitor names the metric."
        )

    def best(self, progress: Progress) -> str:
        """The figures of the best validation so far; nothing before the first."""
        if progress.best_step is None:
            return ""
        figures = {self.name: progress.best_metric, self.tie_breaker: progress.best_tie_breaker}
        shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items() if value is not None)
        return f"best {shown} at step {progress.best_step}"

    def _order(self, value: float | None) -> float:
        """What is larger for a better value; an undefined one is worse than any."""
        if value is None:
            return float("-inf")
        return value if self.higher_is_better else -value


def build_monitor(name: str, evaluator: Evaluator) -> Monitor:
    """What chooses the best weights by an evaluator's figure; one that cannot is a ConfigError."""
    evaluator.check_monitor(name)
    ties = name != TIE_BREAKER and TIE_BREAKER in evaluator.metric_names
    higher = evaluator.higher_is_better(name)
    return Monitor(name, higher_is_better=higher, tie_breaker=TIE_BREAKER if ties else None)


def _lower(value: float | None, *, than: float | None) -> bool:
    """Any value is lower than none, as before the first and in a checkpoint of an earlier version."""
    return value is not None and (than is None or value < than - SMALLEST_GAIN * abs(than))
