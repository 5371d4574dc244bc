"""Cross-validation: an experiment trained and tested over folds, or over each source or other value left out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from consilium.console import reporting
from consilium.core.config import nearest, to_yaml
from consilium.core.errors import ConfigError, DataError
from consilium.core.evaluation import Evaluation, Interval
from consilium.core.files import write_text
from consilium.core.reporter import Reporter, counted, figures, format_table
from consilium.data.cases.cases import Studied
from consilium.data.cases.filters import filtered, usable, your_column
from consilium.data.cases.folds import columns_of
from consilium.data.cases.load import studied_cases
from consilium.data.store.prepare import prepare
from consilium.data.store.store import Store
from consilium.evaluation.report.crossval import CrossvalContent, FoldFigures, write_crossval
from consilium.evaluation.report.wording import FEW_CASES
from consilium.experiment import Experiment, check_experiment
from consilium.series import Once, Part, Tested, changed, one_process
from consilium.tasks.family import Family, Pooled, family_of, studying
from consilium.training.runs import CONFIG


@dataclass(frozen=True)
class CrossvalResult:
    """A finished cross-validation: its folder, the figures of every fold, and those of all tested cases at once.

    ``skipped`` gives the reason for each value that could not be left out; ``unread`` counts the cases that were not
    judged, since an image of theirs could not be read.
    """

    folder: Path
    folds: list[FoldFigures]
    pooled: Evaluation
    skipped: dict[str, str]
    unread: int = 0

    def __repr__(self) -> str:
        left = f", {len(self.skipped)} skipped" if self.skipped else ""
        return f"<CrossvalResult {self.folder}: {len(self.folds)} folds{left}, pooled {figures(self.pooled.metrics)}>"


@dataclass(frozen=True)
class _Fold(Part):
    """One training to come, and its cases."""

    studied: Studied[Any]


def cross_validate(
    experiment: Experiment,
    *,
    folds: int | None = None,
    leave_out: Sequence[str] = (),
    limit: int | None = None,
    quiet: bool = False,
    reporter: Reporter | None = None,
) -> CrossvalResult:
    """Train and test ``folds`` times, or once for each value of the columns ``leave_out`` (their combinations).

    Every fold is a run of its own in ``{root}/{name}/crossval-{variation}-{what}``, with bundle and report. Finished
    folds are read and an unfinished one is resumed: after a stop the same call goes on. ``limit`` keeps so many
    cases of each split. How far it is shows on the screen, unless ``quiet``, or goes to ``reporter``.
    """
    check_experiment(experiment)
    leave_out = [leave_out] if isinstance(leave_out, str) else leave_out
    with reporting(reporter, quiet=quiet) as shown:
        return _cross_validate(experiment, folds=folds, leave_out=leave_out, limit=limit, reporter=Once(shown))


def _cross_validate(
    experiment: Experiment, *, folds: int | None, leave_out: Sequence[str], limit: int | None, reporter: Reporter
) -> CrossvalResult:
    _check(experiment, folds=folds, leave_out=leave_out)
    store = prepare(experiment.data, reporter=reporter).store
    planner = _Planner(experiment, store, limit=limit)
    plan = planner.folds(folds) if folds is not None else planner.leave_out(leave_out)
    counts = [
        {"fold": fold.name, **{split: len(rows) for split, rows in fold.studied.cases.rows.items()}} for fold in plan
    ]
    reporter.line(format_table(counts, title=f"{len(plan)} trainings"))
    for name, reason in planner.skipped.items():
        reporter.line(f"note: {name} is not tested: {reason}")
    for fold in plan:  # what is wrong with one of them shows before hours are spent on the others
        with fold.named():
            if fold.finished(store.fingerprints, limit=limit) is None:
                fold.try_out(limit=limit)
    tested: list[FoldFigures] = []
    answers, unread = [], set[str]()
    for fold in plan:
        with fold.named():
            found = fold.test(store, limit=limit, reporter=reporter)
        tested.append(_figures(fold, found))
        answers.append((found.studied.knowledge, found.outputs))
        unread |= found.unread
    task, family = experiment.task, family_of(experiment.task)
    pooled = family.pooled(task, answers, evaluation=experiment.evaluation) or Pooled(
        answers[0][0], Evaluation(split="crossval", cases=sum(fold.test for fold in tested), metrics={})
    )
    folder = plan[0].folder
    option = f"--folds {folds}" if folds is not None else f"--leave-out {','.join(leave_out)}"
    content = CrossvalContent(
        name=experiment.name,
        what=f"{folds} folds" if folds is not None else f"each {' and '.join(leave_out)} left out",
        by_value=folds is None,
        folds=tested,
        pooled=pooled.evaluation,
        parts=family.report(task, pooled.knowledge),
        skipped=planner.skipped,
        notes=planner.notes,
        confidence=experiment.evaluation.confidence,
        command=f"consilium crossval {folder / CONFIG} {option}" + ("" if limit is None else f" --limit {limit}"),
        config_yaml=to_yaml(experiment),
    )
    write_text(folder / CONFIG, content.config_yaml)
    reporter.line(format_table(content.rows(), title="test figures of each fold"))
    reporter.line(format_table(content.summary_rows(), title="over all folds"))
    for text in content.cautions():
        reporter.line(f"note: {text}")
    reporter.line(f"report: {write_crossval(folder, content)}")
    return CrossvalResult(folder, list(content.folds), content.pooled, planner.skipped, len(unread))


def _check(experiment: Experiment, *, folds: int | None, leave_out: Sequence[str]) -> None:
    split = experiment.data.split
    if (folds is None) == (not leave_out):
        raise ConfigError("crossval needs --folds K or --leave-out source (or another column); give one of them.")
    if split.anew:
        raise ConfigError("crossval sets data.split.folds, fold and leave_out itself; take them out of the config.")
    if experiment.task.origin is not None:
        raise ConfigError(
            f"the task goes on from {experiment.task.origin}, which may have learned from the very cases that a fold "
            "tests; leave it out, so that every fold is trained anew."
        )
    if experiment.trainer.num_runs > 1:
        raise ConfigError(
            f"trainer.num_runs is {experiment.trainer.num_runs}, but crossval trains one run for each fold; set it to "
            "1. Repeat crossval with another seed, data.split.seed and output.variation instead."
        )
    one_process(
        "crossval",
        "To train a fold with several, give data.split.folds and data.split.fold to `consilium train`.",
    )


class _Planner:
    """Divides the cases into folds before anything is trained; ``skipped`` and ``notes`` say what has no fold."""

    def __init__(self, experiment: Experiment, store: Store, *, limit: int | None) -> None:
        self.experiment, self.store, self.limit = experiment, store, limit
        self.skipped: dict[str, str] = {}
        origin = experiment.trainer.init_from
        known = (
            f"every fold starts from {origin}: if that has learned from cases tested here, the figures are too good."
        )
        self.notes = [] if origin is None else [known]

    def folds(self, count: int) -> list[_Fold]:
        """K folds, each tested once."""
        splits = [(f"fold {k}", f"fold-{k}", {"folds": count, "fold": k}) for k in range(count)]
        return [self._fold(f"{count}-folds", *split) for split in splits]

    def leave_out(self, columns: Sequence[str]) -> list[_Fold]:
        """A fold for each combination of values that occurs and can be tested."""
        plan = []
        values = self._values(columns)
        for number, (combination, cases) in enumerate(sorted(values.items())):
            name = ", ".join(combination)
            place = f"fold-{number}-{re.sub(r'[^A-Za-z0-9_.-]', '_', '-'.join(combination))[:60]}"
            cell = {column: [value] for column, value in zip(columns, combination, strict=True)}
            try:
                fold = self._fold(f"leave-out-{'-'.join(columns)}", name, place, {"leave_out": cell})
            except DataError as error:
                self.skipped[name] = str(error)
                continue
            if not len(fold.studied.cases.rows["test"]):
                self.skipped[name] = f"none of its {cases} cases has a label that the others have."
            elif not len(fold.studied.cases.rows["val"]):
                self.skipped[name] = "the others leave no case for validation; raise data.split.val."
            else:
                plan.append(fold)
        if not plan:
            told = "\n".join(f"  - {name}: {reason}" for name, reason in self.skipped.items())
            raise DataError(f"no value of {' and '.join(columns)} can be left out and tested:\n{told}")
        return plan

    def _values(self, columns: Sequence[str]) -> Counter[tuple[str, ...]]:
        """The combinations of values that occur, and the cases of each."""
        data, needs = self.experiment.data, self.experiment.task.needs
        found = usable(self.store.table, needs=needs, pseudo_labels=False)
        table = filtered(found, config=data.filters, seed=data.split.seed).table
        known = columns_of(table)
        for column in columns:
            if column not in known:
                raise ConfigError(f"--leave-out names the column '{column}'{nearest(column, sorted(known))}")
        if "label" in columns and (len(columns) == 1 or needs.label == "many"):
            raise ConfigError(
                "a label that is left out everywhere is one that the model cannot name; leave it out of one source at "
                "a time: --leave-out source,label (and only where a case has one label)."
            )
        rows = [list(product(*own)) for own in zip(*(known[column] for column in columns), strict=True)]
        without = sum(not row for row in rows)
        if without:
            self.notes.append(f"{without} cases have no {' or no '.join(columns)}: they train, and are never tested.")
        counts = Counter(combination for row in rows for combination in row)
        if len(counts) < 2:
            only = ", ".join(next(iter(counts), ("none",)))
            instead = "".join(your_column(column, known) for column in columns) or " Use --folds."
            raise ConfigError(
                f"--leave-out {','.join(columns)} needs two values or more, but there is only: {only}.{instead}"
            )
        return counts

    def _fold(self, what: str, name: str, place: str, split: dict[str, Any]) -> _Fold:
        own, output = self.experiment, self.experiment.output
        change = {
            "name": f"crossval-{output.variation}-{what}",
            "data": {"split": split},
            "output": {"root": str(Path(output.root) / own.name), "variation": place, "if_exists": "resume"},
        }
        experiment = changed(own, change)
        studied = studied_cases(
            self.store.table,
            config=experiment.data,
            needs=own.task.needs,
            study=studying(own.task, learns=True),
            limit=self.limit,
        )
        return _Fold(name, experiment, "crossval", studied)


def _figures(fold: _Fold, found: Tested) -> FoldFigures:
    """The figures of a fold."""
    judged, studied = found.judged, found.studied
    return FoldFigures(
        name=fold.name,
        folder=str(found.folder),
        train=studied.knowledge.training_cases,
        val=judged["val"]["cases"],
        test=len(found.outputs.ids),
        metrics=judged["test"]["metrics"],
        intervals={name: Interval(**interval) for name, interval in judged["test"]["intervals"].items()},
        notes=list(
            dict.fromkeys([*studied.cases.notes, *found.warnings, *_few(family_of(fold.experiment.task), studied)])
        ),
    )


def _few(family: Family[Any, Any, Any], studied: Studied[Any]) -> list[str]:
    """What makes the figures of a fold say little."""
    cases = len(studied.cases.rows["test"])
    few = [f"only {counted(cases, 'case')} tested: the figures say little."] if cases < FEW_CASES else []
    return [*few, *family.says_little(studied)]
