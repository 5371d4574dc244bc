"""The configs of a comparison: what must be the same in them, and what is not."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consilium.core.errors import ConfigError, DataError
from consilium.core.reporter import Reporter, counted, some
from consilium.data.cases.cases import Studied
from consilium.data.cases.load import studied_cases
from consilium.data.store.prepare import prepare
from consilium.data.store.store import Store
from consilium.evaluation.config import AveragingConfig, EvaluationConfig
from consilium.evaluation.report.words import alone
from consilium.experiment import Experiment
from consilium.session.origin import with_start
from consilium.tasks.family import family_of, studying

_OVERRIDE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*=")
_BUDGET = ("trainer.max_epochs", "trainer.max_steps", "trainer.accumulate", "data.loader.batch_size")
_NOT_LEARNED = ("name", "seed", "output.", "report.")  # what differs here makes no other model
_ABSENT, _LONGEST_VALUE = "–", 80


@dataclass(frozen=True)
class Entrant:
    """One of the configs, with its data; ``metrics`` are the figures that its task is judged by."""

    name: str
    experiment: Experiment
    store: Store
    studied: Studied[Any]
    metrics: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many cases each split has."""
        return self.studied.cases.counts()

    def cases(self, split: str) -> dict[str, dict[str, Any]]:
        """The cases of a split by id, with all that a judgement asks about them."""
        needs = self.experiment.task.needs
        table = self.studied.cases.table.select(self.studied.cases.rows[split])
        asked: dict[str, Sequence[Any]] = {"group": table.groups}
        if needs.label in ("one", "many"):
            asked["label"] = table.labels
        if needs.text != "no" and needs.vectors is None:  # vectors go by the id
            asked["text"] = [tuple(text.text for text in texts) for texts in table.named_texts]
        asked |= {f"metadata {name}": column for name, column in table.columns().items() if name in needs.meta}
        return {name: {what: asked[what][row] for what in asked} for row, name in enumerate(table.ids)}


def load_experiments(arguments: Sequence[str], *, vary: str | None = None) -> dict[str, Experiment]:
    """The experiments in YAML files, by name; dotted overrides among the arguments are for all of them.

    ``vary`` is a dotted key with values, ``key=a,b,c``: each file gives an experiment with each of them.
    """
    overrides = [argument for argument in arguments if _OVERRIDE.match(argument)]
    paths = [argument for argument in arguments if argument not in overrides]
    files = zip(names_of(paths), paths, strict=True)
    if vary is None:
        return {name: Experiment.load(path, overrides=overrides) for name, path in files}
    key, values = _varied(vary)
    return {
        re.sub(r"[^A-Za-z0-9_.-]", "_", f"{name}-{key.rpartition('.')[2]}-{value}"): Experiment.load(
            path, overrides=[*overrides, f"{key}={value}"]
        )
        for name, path in files
        for value in values
    }


def _varied(vary: str) -> tuple[str, list[str]]:
    """The key and the values of ``key=a,b,c``; commas in brackets part nothing."""
    key, sign, text = vary.partition("=")
    values = [value.strip() for value in re.split(r",(?![^\[{(]*[\]})])", text)]
    if not sign or len(values) < 2 or not all(values) or len(set(values)) < len(values):
        raise ConfigError(
            f"--vary is '{vary}'; expected a key and two different values or more, as in "
            "--vary optimizer.learning_rate=0.001,0.0003"
        )
    return key, values


def names_of(paths: Sequence[str]) -> list[str]:
    """A name for each config file: its stem, and where that is not enough the folder before it."""
    known = [path if "://" in path else os.path.realpath(os.path.expanduser(path)) for path in paths]
    for path, real in zip(paths, known, strict=True):
        if known.count(real) > 1:
            raise ConfigError(
                f"{path} is given twice; compare needs configs that differ. To see how much trainings vary with the "
                "seed alone: trainer.num_runs."
            )
    stems = [Path(path).stem for path in known]
    folders = [Path(path).parent.name for path in known]
    names = [
        stem if stems.count(stem) == 1 else f"{folder}-{stem}" for stem, folder in zip(stems, folders, strict=True)
    ]
    names = [re.sub(r"[^A-Za-z0-9_.-]", "_", name) for name in names]
    return [name if names.count(name) == 1 else f"{name}-{number}" for number, name in enumerate(names, start=1)]


def entrant(name: str, experiment: Experiment, *, limit: int | None, reporter: Reporter) -> Entrant:
    """A config with its data prepared and studied."""
    experiment, known = with_start(experiment)
    store = prepare(experiment.data, reporter=reporter).store
    task = experiment.task
    studied = studied_cases(
        store.table,
        config=experiment.data,
        needs=task.needs,
        study=studying(task, learns=True),
        known=known,
        limit=limit,
    )
    evaluator = family_of(task).evaluator(task, studied.knowledge, evaluation=experiment.evaluation)
    of_one = {alone(modality) for modality in task.reads}  # another config need not read it
    return Entrant(name, experiment, store, studied, tuple(own for own in evaluator.metric_names if own not in of_one))


# -- What must be the same ----------------------------------------------------------------------------------------


def check_same(first: Entrant, other: Entrant) -> None:
    """Two configs whose figures do not compare are an error that says what differs."""
    names = f"{first.name} and {other.name} cannot be compared"
    if set(first.metrics) != set(other.metrics):
        only = [
            f"{some(sorted(set(own.metrics) - set(against.metrics)), 4)} (only {own.name})"
            for own, against in ((first, other), (other, first))
            if set(own.metrics) - set(against.metrics)
        ]
        raise ConfigError(
            f"{names}: they are not judged by the same figures: {', '.join(only)}. Compare the task sections."
        )
    cases, others = first.cases("test"), other.cases("test")
    if not cases:
        raise DataError(f"{names}: no case is in the test split. Raise data.split.test, or give rows the split 'test'.")
    if cases.keys() != others.keys():
        only = [
            f"{counted(len(left), 'case')} only in {name} ({some(sorted(left), 3)})"
            for name, left in ((first.name, cases.keys() - others.keys()), (other.name, others.keys() - cases.keys()))
            if left
        ]
        raise DataError(
            f"{names}: they have not the same test cases: {len(cases.keys() & others.keys())} in both, "
            f"{', '.join(only)}. Give both the same sources by the same names, data.split and filters; for training on "
            "more data, add what has the split 'train' alone."
        )
    for case, what in _differing(cases, others):
        raise DataError(
            f"{names}: of the test case {case} the {what} is {cases[case][what]!r} for {first.name} and "
            f"{others[case][what]!r} for {other.name}; both must be judged by the same."
        )


def _differing(cases: Mapping[str, Mapping[str, Any]], others: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    """Which cases differ in what, of all that both are asked; one may read more than the other."""
    for case, asked in cases.items():
        yield from ([case, what] for what, value in asked.items() if others[case].get(what, value) != value)


# -- What is not the same -----------------------------------------------------------------------------------------


def notes(entrants: Sequence[Entrant]) -> list[str]:
    """What a reader must know of how the trainings differ."""
    first, said = entrants[0], []
    keys = {row["key"]: row for row in changes(entrants)}
    if not first.experiment.evaluation.bootstrap_samples:
        said.append("evaluation.bootstrap_samples is 0: the differences will have no intervals.")
    for key in _BUDGET:
        if key in keys:
            values = ", ".join(f"{keys[key][one.name]} for {one.name}" for one in entrants)
            said.append(f"the budgets differ: {key} is {values}.")
    if len({one.counts["train"] for one in entrants}) > 1:
        counts = ", ".join(f"{one.name} on {one.counts['train']}" for one in entrants)
        said.append(f"the training data differ: {counts} cases.")
    if not same_validation(entrants):
        said.append("the validation cases are not the same, so that their figures do not compare; those of test do.")
    for other in entrants[1:]:
        if other.experiment.seed != first.experiment.seed:
            said.append(f"the seeds begin with that of {first.name}, {first.experiment.seed}, also for {other.name}.")
        if other.experiment.monitor != first.experiment.monitor:
            said.append(
                f"{other.name} keeps the weights that are best by {other.experiment.monitor} on validation, not by "
                f"{first.experiment.monitor}, which decides."
            )
        if _judging(other.experiment) != _judging(first.experiment):
            said.append(f"the section evaluation is that of {first.name} also for {other.name}.")
    for one in entrants:
        origin = one.experiment.task.origin or one.experiment.trainer.init_from
        if origin is not None:
            said.append(
                f"{one.name} starts from {origin}: if that has learned from cases tested here, its figures are too "
                "good."
            )
    return said


def same_validation(entrants: Sequence[Entrant]) -> bool:
    """Whether all choose their weights on the same cases."""
    first, *others = (one.cases("val") for one in entrants)
    return all(cases.keys() == first.keys() and not any(_differing(first, cases)) for cases in others)


def _judging(experiment: Experiment) -> EvaluationConfig:
    """How test is judged; ``averaging`` is a part of the model."""
    return experiment.evaluation.model_copy(update={"averaging": AveragingConfig()})


def changes(entrants: Sequence[Entrant]) -> list[dict[str, str]]:
    """A row for each key of the training that the configs do not share: ``key``, and the value of each by its name."""
    flat = {one.name: dict(_leaves(one.experiment.model_dump(mode="json"))) for one in entrants}
    rows = []
    for key in dict.fromkeys(key for own in flat.values() for key in own):
        values = [own.get(key, _ABSENT) for own in flat.values()]
        if not key.startswith(_NOT_LEARNED) and any(value != values[0] for value in values):
            rows.append({"key": key, **dict(zip(flat, map(_shown, values), strict=True))})
    return rows


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a config with its dotted key; a list of sections by number."""
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        value = dict(enumerate(value))
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}".lstrip("."))
    else:
        yield path, value


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"
