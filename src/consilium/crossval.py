"""Cross-validation: an experiment trained and tested over folds, or over each source or other value left out."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from consilium.console import reporting
from consilium.core.config import build, merge, nearest, to_yaml
from consilium.core.contracts import Evaluation, Interval, Outputs
from consilium.core.errors import ConfigError, ConsiliumError, DataError
from consilium.core.files import write_text
from consilium.core.reporter import Reporter, counted, figures, format_table
from consilium.core.section import Knowledge
from consilium.data.cases.cases import Studied
from consilium.data.cases.filters import filtered, usable, your_column
from consilium.data.cases.folds import columns_of
from consilium.data.cases.load import studied_cases
from consilium.data.config import GuardConfig
from consilium.data.store.prepare import prepare
from consilium.data.store.store import Store
from consilium.evaluation.report.crossval import CrossvalContent, FoldFigures, write_crossval
from consilium.evaluation.report.page import METRICS, read_unread, read_warnings
from consilium.evaluation.report.wording import FEW_CASES
from consilium.experiment import Experiment, check_experiment
from consilium.predictor import Predictor, case_outputs
from consilium.session import train
from consilium.tasks.family import Family, Pooled, family_of, studying
from consilium.training.runs import CONFIG, finished_run

GUARDS_OFF = {name: False for name, field in GuardConfig.model_fields.items() if field.annotation is bool}


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
class _Fold:
    """One training to come: its name in tables, its experiment, and its cases."""

    name: str
    experiment: Experiment
    studied: Studied[Any]


@dataclass(frozen=True)
class _Tested:
    """One finished fold: its figures, and the answers of its model to the cases it tested."""

    figures: FoldFigures
    outputs: Outputs
    knowledge: Knowledge
    unread: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Once:
    """Passes on to ``reporter``, but each note once: what is said of the data comes again with every fold."""

    reporter: Reporter
    told: set[str] = field(default_factory=set)

    def line(self, text: str) -> None:
        if not text.startswith("note: ") or text not in self.told:
            self.reporter.line(text)
        self.told.add(text)

    def progress(self, name: str, done: int, total: int | None, text: str = "") -> None:
        self.reporter.progress(name, done, total, text)


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
        return _cross_validate(experiment, folds=folds, leave_out=leave_out, limit=limit, reporter=_Once(shown))


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
        with _named(fold):
            if _finished(fold, store, limit=limit) is None:
                _try(fold, limit=limit)
    tested = []
    for fold in plan:
        with _named(fold):
            tested.append(_test(fold, store, limit=limit, reporter=reporter))
    task, family = experiment.task, family_of(experiment.task)
    answers = [(one.knowledge, one.outputs) for one in tested]
    pooled = family.pooled(task, answers, evaluation=experiment.evaluation) or Pooled(
        tested[0].knowledge, Evaluation(split="crossval", cases=sum(one.figures.test for one in tested), metrics={})
    )
    folder = _folder(plan[0].experiment)
    option = f"--folds {folds}" if folds is not None else f"--leave-out {','.join(leave_out)}"
    content = CrossvalContent(
        name=experiment.name,
        what=f"{folds} folds" if folds is not None else f"each {' and '.join(leave_out)} left out",
        by_value=folds is None,
        folds=[one.figures for one in tested],
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
    unread = frozenset[str]().union(*(one.unread for one in tested))
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
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "crossval runs in one process. To train a fold with several, give data.split.folds and data.split.fold to "
            "`consilium train`."
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
        experiment = _changed(own, change)
        studied = studied_cases(
            self.store.table,
            config=experiment.data,
            needs=own.task.needs,
            study=studying(own.task, learns=True),
            limit=self.limit,
        )
        return _Fold(name, experiment, studied)


def _changed(experiment: Experiment, change: dict[str, Any]) -> Experiment:
    return build(Experiment, merge(experiment.model_dump(mode="json"), change), origin="crossval")


def _folder(experiment: Experiment) -> Path:
    return Path(experiment.output.root) / experiment.name


@contextlib.contextmanager
def _named(fold: _Fold) -> Iterator[None]:
    """Let an error say which fold it stopped."""
    try:
        yield
    except ConsiliumError as error:
        kept = f"What is finished is kept in {_folder(fold.experiment)}; the same crossval command goes on from there."
        error.args = (f"{fold.name}: {error} {kept}",)
        raise


def _finished(fold: _Fold, store: Store, *, limit: int | None) -> Path | None:
    own = fold.experiment
    return finished_run(own.output, name=own.name, config=own, limit=limit, data_fingerprints=store.fingerprints)


def _try(fold: _Fold, *, limit: int | None) -> None:
    """One step of the fold, without what reads all images: the training itself does that."""
    change: dict[str, Any] = {"data": {"guards": GUARDS_OFF}, "output": {"if_exists": "new"}}
    if fold.experiment.data.image.statistics == "data":
        change["data"]["image"] = {"statistics": "given"}
    train(_changed(fold.experiment, change), limit=limit, dry_run=True, quiet=True)


def _test(fold: _Fold, store: Store, *, limit: int | None, reporter: Reporter) -> _Tested:
    """Train the fold unless that is done, and let its model answer the cases that it tests."""
    experiment = fold.experiment
    folder = _finished(fold, store, limit=limit)
    if folder is None:
        reporter.line(f"-- {fold.name} --")
        result = train(experiment, limit=limit, reporter=reporter)
        assert result is not None, "no dry run"
        folder = result.bundle
    else:
        reporter.line(f"{fold.name} is finished: {folder}")
    predictor = Predictor.load(
        folder, device=experiment.trainer.device, batch_size=experiment.data.loader.eval_batch_size or 32
    )
    task = experiment.task
    studied = studied_cases(
        store.table,
        config=experiment.data,
        needs=task.needs,
        study=studying(task, learns=False),
        known=predictor.knowledge,
        limit=limit,
    )
    outputs = case_outputs(predictor, studied, "test")
    judged = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    figures = FoldFigures(
        name=fold.name,
        folder=str(folder),
        train=predictor.knowledge.training_cases,
        val=judged["val"]["cases"],
        test=len(outputs.ids),
        metrics=judged["test"]["metrics"],
        intervals={name: Interval(**interval) for name, interval in judged["test"]["intervals"].items()},
        notes=list(dict.fromkeys([*studied.cases.notes, *read_warnings(folder), *_few(family_of(task), studied)])),
    )
    return _Tested(figures, outputs, studied.knowledge, frozenset({*outputs.unread, *read_unread(folder)}))


def _few(family: Family[Any, Any, Any], studied: Studied[Any]) -> list[str]:
    """What makes the figures of a fold say little."""
    cases = len(studied.cases.rows["test"])
    few = [f"only {counted(cases, 'case')} tested: the figures say little."] if cases < FEW_CASES else []
    return [*few, *family.says_little(studied)]
