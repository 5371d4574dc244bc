"""A comparison: several experiments trained with the same seeds and judged on the same test cases."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from consilium.comparison.entrants import Entrant, changes, check_same, entrant, notes, same_validation
from consilium.console import reporting
from consilium.core.config import to_yaml
from consilium.core.errors import ConfigError, DataError
from consilium.core.files import write_text
from consilium.core.reporter import Reporter, counted, format_table
from consilium.evaluation.config import EvaluationConfig
from consilium.evaluation.report.comparison import ComparedRun, ComparisonContent, Difference, write_comparison
from consilium.experiment import Experiment, check_experiment
from consilium.series import Once, Part, Tested, changed, one_process
from consilium.tasks.family import family_of


@dataclass(frozen=True)
class CompareResult:
    """A finished comparison: its folder, every run, and the differences of all configs but the first to the first.

    ``differences`` are by config and figure; ``decides`` is the figure that was named beforehand. ``unread`` counts the
    cases that were not judged, since an image of theirs could not be read.
    """

    folder: Path
    decides: str
    runs: list[ComparedRun]
    differences: dict[str, dict[str, Difference]]
    unread: int = 0

    def __repr__(self) -> str:
        found = [
            f"{self.decides} of {name} {own[self.decides].mean:+.3f}"
            for name, own in self.differences.items()
            if self.decides in own
        ]
        return f"<CompareResult {self.folder}: {', '.join(found) or f'{self.decides} is not defined'}>"


@dataclass(frozen=True)
class _Run(Part):
    """One training to come: a config with a seed."""

    entrant: Entrant


def compare(
    experiments: Mapping[str, Experiment],
    *,
    runs: int = 5,
    limit: int | None = None,
    quiet: bool = False,
    reporter: Reporter | None = None,
) -> CompareResult:
    """Train ``experiments``, by name, with the same ``runs`` seeds, and compare all others with the first on its test.

    The seeds are that of the first experiment, the next one, and so on. The figure that chooses the first one's weights
    on validation decides. Every training is a run of its own in ``{root}/{name}/compare-{variation}-{names}``, of the
    first experiment, with bundle and report. Finished ones are read and an unfinished one is resumed: after a stop the
    same call goes on, and more ``runs`` add to those that are there. ``limit`` keeps so many cases of each split. How
    far it is shows on the screen, unless ``quiet``, or goes to ``reporter``.
    """
    _check(experiments, runs=runs)
    with reporting(reporter, quiet=quiet) as shown:
        return _compare(experiments, runs=runs, limit=limit, reporter=Once(shown))


def _check(experiments: Mapping[str, Experiment], *, runs: int) -> None:
    if not isinstance(experiments, Mapping):
        raise ConfigError("compare takes experiments by name: consilium.compare({'small': small, 'large': large}).")
    for experiment in experiments.values():
        check_experiment(experiment)
    if len(experiments) < 2:
        raise ConfigError(f"compare needs two experiments or more, but got {counted(len(experiments), 'experiment')}.")
    kinds = {name: experiment.task.kind for name, experiment in experiments.items()}
    if len(set(kinds.values())) > 1:
        shown = ", ".join(f"{name} is {kind}" for name, kind in kinds.items())
        raise ConfigError(f"experiments of one kind can be compared, but {shown} (task.kind).")
    for name in experiments:
        if not re.fullmatch(r"[A-Za-z0-9_.-]*[A-Za-z0-9_-]", name):
            raise ConfigError(f"an experiment is named '{name}', which also names files: use letters, digits, _ . -")
    if runs < 1:
        raise ConfigError(f"runs is {runs}; expected the number of seeds, at least 1.")
    for name, experiment in experiments.items():
        if experiment.trainer.num_runs > 1:
            raise ConfigError(
                f"{name}: trainer.num_runs is {experiment.trainer.num_runs}, but compare trains every config with each "
                "of its seeds; set it to 1 and give --runs (in Python: runs)."
            )
    one_process("compare", "To train with several, give each seed to `consilium train` by itself.")


def _compare(
    experiments: Mapping[str, Experiment], *, runs: int, limit: int | None, reporter: Reporter
) -> CompareResult:
    entrants = [entrant(name, own, limit=limit, reporter=reporter) for name, own in experiments.items()]
    first = entrants[0].experiment
    for other in entrants[1:]:
        check_same(entrants[0], other)
    seeds = [first.seed + number for number in range(runs)]
    plan = [_run(one, seed, first=first, names=list(experiments)) for seed in seeds for one in entrants]
    counts = [{"config": one.name, **one.counts} for one in entrants]
    reporter.line(format_table(counts, title=f"{len(plan)} trainings"))
    reporter.line(f"seeds: {', '.join(map(str, seeds))}")
    reporter.line(f"what decides: {first.monitor} on test, of the weights for which it is best on validation")
    for text in notes(entrants):
        reporter.line(f"note: {text}")
    _try_out(plan, limit=limit)
    compared: list[ComparedRun] = []
    unread: set[str] = set()
    for run in plan:
        with run.named():
            found = run.test(run.entrant.store, limit=limit, reporter=reporter)
            compared.append(_judged(run, found, evaluation=first.evaluation))
        _check_judged(compared[0], compared[-1])
        unread |= found.unread
    folder = plan[0].folder
    given = [str(folder / f"{name}.yaml") for name in experiments]
    content = ComparisonContent(
        names=list(experiments),
        seeds=seeds,
        decides=first.monitor,
        runs=compared,
        parts=family_of(first.task).report(first.task, entrants[0].studied.knowledge),
        changes=changes(entrants),
        same_validation=same_validation(entrants),
        notes=notes(entrants),
        confidence=first.evaluation.confidence,
        seed=first.evaluation.seed,
        command=f"consilium compare {' '.join(given)} --runs {runs}" + ("" if limit is None else f" --limit {limit}"),
        configs={name: to_yaml(own) for name, own in experiments.items()},
    )
    _write(folder, content, reporter=reporter)
    return CompareResult(folder, content.decides, compared, content.differences, len(unread))


def _run(one: Entrant, seed: int, *, first: Experiment, names: Sequence[str]) -> _Run:
    """The training of a config with a seed, in the folder that all of them share."""
    change = {
        "name": f"compare-{first.output.variation}-{'-'.join(names)}",
        "seed": seed,
        "output": {
            "root": str(Path(first.output.root) / first.name),
            "variation": f"{one.name}-seed-{seed}",
            "if_exists": "resume",
        },
    }
    return _Run(f"{one.name}, seed {seed}", changed(one.experiment, change), "compare", one)


def _try_out(plan: Sequence[_Run], *, limit: int | None) -> None:
    """One step of every config: what is wrong with one shows before hours are spent on the others."""
    tried: set[str] = set()
    for run in plan:
        with run.named():
            finished = run.finished(run.entrant.store.fingerprints, limit=limit) is not None
            if not finished and run.entrant.name not in tried:
                run.try_out(limit=limit)
                tried.add(run.entrant.name)


def _judged(run: _Run, found: Tested, *, evaluation: EvaluationConfig) -> ComparedRun:
    """The figures of one training; the same ``evaluation`` for all, so that they have the same resamples."""
    task = run.experiment.task
    evaluator = family_of(task).evaluator(task, found.studied.knowledge, evaluation=evaluation)
    return ComparedRun(
        name=run.entrant.name,
        seed=run.experiment.seed,
        folder=str(found.folder),
        val=found.judged["val"]["metrics"],
        test=evaluator.evaluate(found.outputs, split="test"),
        notes=list(dict.fromkeys([*found.studied.cases.notes, *found.warnings])),
    )


def _check_judged(first: ComparedRun, other: ComparedRun) -> None:
    """Resamples are the same only where the cases are."""
    counts = [(run.test.cases, run.test.groups) for run in (first, other)]
    if counts[0] != counts[1]:
        raise DataError(
            f"{first.name} was judged on {counts[0][0]} test cases of {counts[0][1]} groups, {other.name} (seed "
            f"{other.seed}) on {counts[1][0]} of {counts[1][1]}: images that one of them cannot read, or labels that "
            "are no leaf of its tree. Their reports name these cases; take them out with data.filters."
        )


def _write(folder: Path, content: ComparisonContent, *, reporter: Reporter) -> None:
    """The configs and the report, and the result on the screen."""
    for name, text in content.configs.items():
        write_text(folder / f"{name}.yaml", text)
    reporter.line(format_table(content.rows(), title="test figures, and differences with the same seed"))
    for text in content.sentences():
        reporter.line(text)
    for text in content.cautions():
        reporter.line(f"note: {text}")
    reporter.line(f"report: {write_comparison(folder, content)}")
