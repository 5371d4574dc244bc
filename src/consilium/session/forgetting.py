"""What a training forgot: what it began with against what it left, and the weights between them (WiSE-FT).

Wortsman et al., Robust Fine-Tuning of Zero-Shot Models, 2022, arXiv:2109.01903.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consilium.bundle import bundle_config
from consilium.console import reporting
from consilium.core.config import build
from consilium.core.errors import ConfigError, ConsiliumError
from consilium.core.evaluation import Evaluation
from consilium.core.reporter import Reporter, Silent, figures, some
from consilium.core.section import TaskSection
from consilium.core.task import Task
from consilium.data.cases.cases import Studied
from consilium.evaluation.probes.report import with_probes
from consilium.evaluation.report.forgetting import Curve, ForgettingContent, write_forgetting
from consilium.experiment import Experiment
from consilium.judge import Judging, cases_to_judge, find, given_to_judge
from consilium.manifest import local_bundle
from consilium.models.lora import merge_adapters
from consilium.predictor import Predictor
from consilium.session.origin import load_bundle, load_first, trained_groups
from consilium.tasks.family import family_of

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
OWN = "the data of the training"


@dataclass(frozen=True)
class ForgettingResult:
    """The folder of the report, and of each data set by name the figures before and after."""

    folder: Path
    rows: dict[str, list[dict[str, Any]]]


def forgetting(
    bundle: str | Path,
    *,
    data: Sequence[str | Path],
    alphas: Sequence[float] = ALPHAS,
    start: str | Path | None = None,
    split: str | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    quiet: bool = False,
    reporter: Reporter | None = None,
) -> ForgettingResult:
    """Judge a bundle, what its training began with, and the weights between, on ``data`` and on the bundle's own test.

    ``data`` are as ``evaluate`` takes them, each with ``probes`` of its own. ``start`` is a bundle or a weights file in
    the place of what the config of the bundle names: pretrained weights or ``trainer.init_from``. Where that cannot be
    had, or was random, it is a ConfigError. Writes forgetting.html, .json and .csv into ``out`` (default: a folder
    ``forgetting`` in the bundle).
    """
    tried = _checked(alphas)
    with reporting(reporter, quiet=quiet) as shown:
        folder = local_bundle(bundle)
        experiment = build(Experiment, bundle_config(folder), origin=str(folder / "config.yaml"))
        predictor = Predictor.load(folder, device=device)
        sets = _judgings(experiment, data, split=split)
        notes: list[str] = []
        studied = {}
        for name, judging in sets.items():
            try:
                studied[name] = cases_to_judge(judging, known=predictor.knowledge, fingerprint="", reporter=shown)
            except ConsiliumError as error:
                if name != OWN:
                    raise
                notes.append(f"{OWN} cannot be judged: {str(error).splitlines()[0]}")
        began = begun_with(experiment, predictor, origin=None if start is None else str(start), folder=folder)
        between = Between(predictor.task, began.task, groups=began.groups)
        notes += [*began.notes, *between.notes]
        if between.only_ends:
            tried = [0.0, 1.0]
        judged = {
            name: _curve(name, predictor, between, sets[name], own, alphas=tried, reporter=shown)
            for name, own in studied.items()
        }
        content = ForgettingContent(
            name=experiment.name,
            start=began.said,
            curves=[
                Curve(name, _figures(experiment.task, predictor), own, experiment.evaluation.confidence)
                for name, own in judged.items()
            ],
            notes=notes,
            command=f"consilium forgetting {folder} " + " ".join(f"--data {own}" for own in data),
        )
        target = Path(out) if out is not None else folder / "forgetting"
        page = write_forgetting(target, content)
        for curve in content.curves:
            shown.line(curve.sentence())
        shown.line(f"report: {page}")
        return ForgettingResult(target, {curve.name: curve.rows for curve in content.curves})


def _checked(alphas: Sequence[float]) -> list[float]:
    """The alphas in their order, with both ends."""
    if wrong := [alpha for alpha in alphas if not 0 <= alpha <= 1]:
        raise ConfigError(f"an alpha is {wrong[0]:g}; expected numbers from 0, the start, to 1, the bundle.")
    return sorted({0.0, *map(float, alphas), 1.0})


def _judgings(experiment: Experiment, data: Sequence[str | Path], *, split: str | None) -> dict[str, Judging]:
    """What to judge on by name: the given data, then the bundle's own."""
    if not data:
        raise ConfigError("there is nothing to judge on; give other labelled data, as `consilium evaluate` takes it.")
    make = partial(
        Judging,
        section=experiment.task,
        evaluation=experiment.evaluation,
        report=experiment.report,
        trained_on=None,
        command="",
        is_own=False,
    )
    found: dict[str, Judging] = {}
    for path in (*map(str, data), None):
        name = OWN if path is None else Path(path).stem
        if name in found:
            raise ConfigError(f"two of the data are called '{name}'; give their files different names.")
        given = given_to_judge(path, split=split, own=experiment.data, probes=experiment.probes)
        found[name] = make(data=given.data, split=given.split, probes=given.probes)
    return found


@dataclass(frozen=True)
class Start:
    """What a training began with: its task, the groups of parameters that were trained before, and it in words."""

    task: Task
    groups: Sequence[str]
    said: str
    notes: list[str]


def begun_with(experiment: Experiment, predictor: Predictor, *, origin: str | None, folder: Path) -> Start:
    """What the training of a bundle began with, or ``origin`` in its place; none is a ConfigError."""
    section: TaskSection = experiment.task
    origin = origin or experiment.trainer.init_from
    groups = section.groups if origin else trained_groups(experiment)
    if not groups or section.origin is not None:
        raise ConfigError(
            f"the training of {folder} began with random weights, so that there is nothing that it could have "
            "forgotten. To compare it with another model of its kind, give a bundle or weights file with --start."
        )
    family = family_of(section)
    try:
        members = {name: load_bundle(name) for name in section.borrows} if origin is None else {}
        task: Task = family.build(
            section, predictor.knowledge, image=predictor.image, members=members, weights=origin is None
        )
        merge_adapters(task)
        if origin is not None:
            load_first(task, origin)
    except (ConsiliumError, OSError) as error:
        raise ConfigError(
            f"what the training of {folder} began with cannot be had: {error} Give a bundle or a weights file of it "
            "with --start."
        ) from error
    random = [name for name in section.groups if name not in groups]
    notes = []
    if random:
        notes.append(f"{some(random, 5)} began with random weights: before as after they are those of the bundle.")
    if predictor.manifest is not None and (alpha := predictor.manifest.alpha) is not None:
        notes.append(f"the bundle itself holds a share of {alpha:g} of what was learned (trainer.wise_ft).")
    return Start(task, groups, origin or some(list(section.towers.values()), 3), notes)


class Between:
    """Gives a task (1 - alpha) * start + alpha * its own weights, and back."""

    def __init__(self, task: Task, start: Task, *, groups: Sequence[str]) -> None:
        held = {id(own) for group in start.parameter_groups() if group.name in groups for own in group.parameters}
        names = {name for name, own in start.named_parameters() if id(own) in held}
        names |= {name for name, own in start.named_buffers() if own.is_floating_point()}
        state = task.state_dict()
        first = start.state_dict()
        self._task = state
        self._ends: dict[str, tuple[Tensor, Tensor]] = {
            name: (first[name].to(state[name]), state[name].clone())
            for name in sorted(names & state.keys() & first.keys())
            if first[name].shape == state[name].shape
        }
        moved = [name for name, (begun, left) in self._ends.items() if not torch.equal(begun, left)]
        buffers = {name for name, _ in task.named_buffers()}
        self.only_ends = any(name in buffers for name in moved)
        self.notes = []
        if not moved:
            self.notes.append("nothing of what was trained before has changed: before and after are the same.")
        if self.only_ends:
            self.notes.append("BatchNorm has statistics of its own at each end, so that only the ends are judged.")

    @torch.no_grad()
    def take(self, alpha: float) -> None:
        """Put the mixture into the task; 1 gives its own weights back."""
        for name, (begun, left) in self._ends.items():
            self._task[name].copy_(left if alpha == 1 else torch.lerp(begun, left, alpha))


def _figures(section: TaskSection, predictor: Predictor) -> tuple[str, ...]:
    """The figures that reports of this kind begin with; those of probes first."""
    parts = family_of(section).report(section, predictor.knowledge)
    own = parts.headlines
    return (*with_probes(parts).headlines[len(own) :], *own)


def _curve(
    name: str,
    predictor: Predictor,
    between: Between,
    judging: Judging,
    studied: Studied[Any],
    *,
    alphas: Sequence[float],
    reporter: Reporter,
) -> dict[float, Evaluation]:
    """The figures at every alpha."""
    found = {}
    try:
        for number, alpha in enumerate(alphas):
            between.take(alpha)
            found[alpha] = find(predictor, judging, studied, reporter=Silent()).evaluation
            metrics = found[alpha].metrics
            own = {key: metrics[key] for key in _figures(judging.section, predictor) if key in metrics}
            reporter.line(f"{name}, alpha {alpha:g}: {figures(own)}")
            reporter.progress("alphas", number + 1, len(alphas))
    finally:
        between.take(1.0)
    return found
