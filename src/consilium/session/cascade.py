"""A cascade in training: a flat run for every node of the label tree, one after another, and then the whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from consilium.bundle import Predictor, load_cascade
from consilium.core.config import nearest, to_yaml
from consilium.core.errors import ConfigError, ConsiliumError, DataError
from consilium.core.files import write_text
from consilium.core.labels import LabelTree
from consilium.core.reporter import Reporter, Silent, counted, format_table
from consilium.data.config import FilterConfig, ImageConfig
from consilium.data.dataset import LabelledCases, labelled_cases, rare_class_warnings
from consilium.data.filters import Filtered, filtered
from consilium.data.load import LoadedData, measured
from consilium.evaluation.tree import HIERARCHICAL
from consilium.experiment import Experiment
from consilium.judge import RunFacts
from consilium.losses.config import ClassificationLossConfig
from consilium.manifest import MANIFEST, node_folder
from consilium.models.weights import parameter_counts
from consilium.session.finish import RunResult, finish
from consilium.session.seed import Session
from consilium.tasks.cascade import choices
from consilium.tasks.config import TreeConfig
from consilium.training.hooks import RunLog
from consilium.training.processes import on_main
from consilium.training.runs import CONFIG


@dataclass(frozen=True)
class _Node:
    """One flat run to come: its node, what it learns with, and its cases."""

    name: str
    experiment: Experiment
    cases: LabelledCases


class CascadeTraining:
    """Trains the networks of a cascade into ``{folder}/nodes``, each an ordinary flat run, and makes them one bundle.

    A run that stopped goes on with the node it stopped at: what is finished is only read.
    """

    def __init__(
        self, experiment: Experiment, data: LoadedData, *, accelerator: Accelerator, seed: int, reporter: Reporter
    ) -> None:
        self.experiment, self.data, self.seed, self.reporter = experiment, data, seed, reporter
        self.accelerator = accelerator
        self.runs = experiment.trainer.num_runs
        self.log = RunLog(echo=reporter.line)
        _refuse_settings(experiment, data.cases.labels)
        _refuse_small(data.cases)
        for name in sorted(experiment.task.tree.statistics.keys() - choices(data.cases.labels)):
            self.log.line(f"note: task.tree.statistics of {name} are not used: it has one child, and so no network.")
        self.nodes = [
            _Node(
                name, _node_experiment(experiment, name, children, seed=seed), _node_cases(data.cases, name, children)
            )
            for name, children in _children(data.cases.labels).items()
        ]

    def try_out(self, *, precision: str | None) -> str:
        """A trial batch for every node, before hours are spent on the first; returns the precision to train in."""
        rows = []
        for node in self.nodes:
            image = node.experiment.data.image
            if image.statistics == "data":  # measured when its turn comes
                image = image.model_copy(update={"statistics": "given"})
            with _named(node):
                session = self._session(node, image, Silent())
                precision = session.try_out(precision=precision)
                session.feed.close()
            cases = {split: len(own) for split, own in node.cases.rows.items()}
            rows.append(
                {"node": node.name, "classes": len(node.cases.labels), **cases, "steps": session.plan.total_steps}
            )
        self.log.line(format_table(rows, title=f"a cascade of {counted(len(rows), 'network')}"))
        assert precision is not None, "there is a node"
        return precision

    def complete(self, folder: Path, precision: str) -> RunResult:
        """Train the nodes that are not finished, then judge the whole and write its bundle into ``folder``."""
        if self.accelerator.is_main_process:
            self.log.open(folder / "log.txt")
        for number, node in enumerate(self.nodes, start=1):
            place = folder / node_folder(node.name)
            what = f"node {number} of {len(self.nodes)}: {node.name}"
            if (place / MANIFEST).is_file():
                self.log.line(f"{what} is finished: {place}")
                continue
            classes, cases = len(node.cases.labels), len(node.cases.rows["train"])
            self.log.line(f"{what}, {classes} classes, {counted(cases, 'training case')}")
            with _named(node):
                self._train(node, place, precision)
        return on_main(self.accelerator, lambda: self._finish(folder, precision))

    def _train(self, node: _Node, place: Path, precision: str) -> None:
        place.mkdir(parents=True, exist_ok=True)
        if self.accelerator.is_main_process:
            write_text(place / CONFIG, to_yaml(node.experiment))
        image = measured(node.experiment.data.image, self.data.store, node.cases, self.reporter)
        session = self._session(node, image, self.reporter)
        session.try_out(precision=precision)
        session.complete(place, precision)

    def _session(self, node: _Node, image: ImageConfig, reporter: Reporter) -> Session:
        data = replace(self.data, cases=node.cases, image=image)
        return Session(node.experiment, data, accelerator=self.accelerator, seed=self.seed, reporter=reporter)

    def _finish(self, folder: Path, precision: str) -> RunResult:
        """Judge the networks as one, calibrated on validation as a whole."""
        experiment, device = self.experiment, self.accelerator.device
        cascade = load_cascade(folder, self.data.cases.labels).to(device).to(memory_format=torch.channels_last)
        predictor = Predictor(
            cascade,
            image=cascade.image,
            labels=cascade.labels,
            loader=experiment.data.loader,
            device=device,
            threshold=experiment.evaluation.threshold,
            averaging=experiment.evaluation.averaging,
        )
        parts = zip(cascade.names, parameter_counts(cascade.networks), strict=True)
        facts = RunFacts(
            precision=precision,
            device=str(device),
            parts=[{**asdict(part), "name": f"network of {name}"} for name, part in parts],
            warnings=list(self.data.cases.notes),
        )
        result = finish(
            folder,
            experiment=experiment,
            data=self.data,
            predictor=predictor,
            seed=self.seed,
            facts=facts,
            reporter=self.reporter,
        )
        self.log.line(f"the cascade and its report.html are in {folder}")
        return result


def _children(labels: LabelTree) -> dict[str, list[str]]:
    """The labels that each network tells apart, by its node."""
    return {name: [labels.names[child] for child in group.ids] for name, group in choices(labels).items()}


def _refuse_settings(experiment: Experiment, labels: LabelTree) -> None:
    """A setting that a cascade cannot follow is a ConfigError."""
    origin, weights = experiment.trainer.init_from, experiment.task.loss.class_weights
    if origin is not None:
        raise ConfigError(
            f"trainer.init_from is {origin}, but a cascade has a network for every node. Leave it out; "
            "task.vision.pretrained takes a file of weights for all towers."
        )
    if experiment.trainer.monitor in HIERARCHICAL:
        raise ConfigError(
            f"trainer.monitor is {experiment.trainer.monitor}, but each network of a cascade sees one level; choose "
            "its weights by accuracy or macro_f1."
        )
    inner = [labels.name_of(group.parent) for group in labels.siblings]
    for name in experiment.task.tree.statistics:
        if name not in inner:
            raise ConfigError(f"task.tree.statistics: '{name}' is no inner node{nearest(name, inner)}")
    for name in weights if isinstance(weights, dict) else ():
        if name not in labels.names:
            raise ConfigError(f"task.loss.class_weights: '{name}' is not a label{nearest(name, labels.names)}")


def _refuse_small(cases: LabelledCases) -> None:
    """Nodes with too few cases for a network are one DataError."""
    train, val = (dict(zip(cases.labels.names, cases.counts(split), strict=True)) for split in ("train", "val"))
    lacking = []
    for name, children in _children(cases.labels).items():
        seen = [child for child in children if train[child]]
        if len(seen) < 2:
            found = f"of its {len(children)} children only {seen[0]} has" if seen else "none of its children has"
            lacking.append(f"{name}: {found} training cases")
        elif not any(val[child] for child in children):
            lacking.append(f"{name}: no validation case has a label below it")
    if lacking:
        told = "".join(f"\n  - {line}" for line in lacking)
        raise DataError(
            f"a cascade needs training cases of two children, and a validation case, below every inner node:{told}\n"
            "Add cases, take these labels out (task.tree.nodes, data.filters.labels), or choose task.tree.head: joint."
        )


def _node_experiment(experiment: Experiment, node: str, children: list[str], *, seed: int) -> Experiment:
    """The node's network as an experiment of its own, that `consilium train` could repeat."""
    task, data = experiment.task, experiment.data
    image, given = data.image, task.tree.statistics.get(node)
    if given is not None:
        image = image.model_copy(update={"statistics": "given", "mean": given.mean, "std": given.std})
    tree = TreeConfig(nodes=children)
    own = {
        "name": f"{experiment.name}-{Path(node_folder(node)).name}",
        "seed": seed,
        "task": task.model_copy(update={"tree": tree, "loss": _node_loss(task.loss, children)}),
        "data": data.model_copy(
            update={"filters": data.filters.model_copy(update={"node": node}), "image": image},
        ),
        "trainer": experiment.trainer.model_copy(update={"num_runs": 1}),
    }
    return experiment.model_copy(update=own)


def _node_loss(loss: ClassificationLossConfig, children: list[str]) -> ClassificationLossConfig:
    if not isinstance(loss.class_weights, dict):
        return loss
    own = {name: weight for name, weight in loss.class_weights.items() if name in children}
    return loss.model_copy(update={"class_weights": own})


def _node_cases(cases: LabelledCases, node: str, children: list[str]) -> LabelledCases:
    """The cases below a node, labelled with its children; each stays in its split."""
    used = cases.table.select(np.sort(np.concatenate(list(cases.rows.values()))))
    below = filtered(Filtered(used), config=FilterConfig(node=node), seed=0)
    own = labelled_cases(below, multi_label=False, labels=LabelTree(children))
    own.notes.extend(rare_class_warnings(own))
    return own


@contextlib.contextmanager
def _named(node: _Node) -> Iterator[None]:
    """Let an error say which node it stopped."""
    try:
        yield
    except ConsiliumError as error:
        error.args = (f"node {node.name}: {error}",)
        raise
