"""Adding labels to a trained router: what is taken over from its bundle, and what stays as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from consilium.core.config import build, merge
from consilium.core.errors import ConfigError, DataError
from consilium.core.labels import LabelTree
from consilium.core.reporter import some
from consilium.data.dataset import LabelledCases
from consilium.experiment import Experiment
from consilium.manifest import Manifest, local_bundle, read_manifest
from consilium.models.config import FreezeConfig
from consilium.tasks.classify import growing


@dataclass(frozen=True)
class Growth:
    """A trained router that a training adds labels to.

    Its labels keep their ids. Its tower stays, and so do its scores of every label but those above a new one, which
    learn to lead there, and the temperatures. So every probability among siblings stays where none of them learns, and
    elsewhere the odds between those that do not.
    """

    origin: str
    manifest: Manifest

    @cached_property
    def known(self) -> LabelTree:
        """The labels that it has."""
        return LabelTree(self.manifest.labels, nested=self.manifest.task.tree.nested)

    def adopted(self, experiment: Experiment) -> Experiment:
        """The experiment with the bundle's settings; one that says otherwise is a ConfigError."""
        task, image = self.manifest.task, self.manifest.image
        own: dict[str, Any] = {
            "task": {
                "tree": {"head": task.tree.head},
                "vision": task.vision.model_dump(mode="json", exclude={"freeze"}),
                "head": task.head.model_dump(mode="json"),
            },
            "data": {"image": image.model_dump(mode="json", exclude={"max_pixels", "statistics"})},
            "evaluation": {"averaging": self.manifest.averaging.model_dump(mode="json")},
        }
        stated = experiment.model_dump(mode="json", exclude_unset=True)
        if experiment.data.image.statistics != "given":
            for name in ("mean", "std"):
                stated["data"]["image"].pop(name, None)
        if different := list(_different(stated, own)):
            raise ConfigError(
                f"task.add_to takes over what {self.origin} was trained with, and the config says otherwise: "
                f"{'; '.join(different)}. Leave these keys out."
            )
        if experiment.trainer.init_from is not None:
            raise ConfigError("task.add_to and trainer.init_from both give the first weights; leave init_from out.")
        forced = {
            "task": {"vision": {"freeze": FreezeConfig(kind="tower").model_dump(mode="json")}},
            "data": {"image": {"statistics": "given"}},
        }
        tree = merge(merge(experiment.model_dump(mode="json"), own), forced)
        return build(Experiment, tree, origin=f"the config with the settings of {self.origin}")

    def check(self, cases: LabelledCases) -> str:
        """Say which labels are new; a DataError where none is, or where they cannot be learned from these cases."""
        names, counts = cases.labels.names, cases.class_counts()
        new = names[len(self.known) :]
        if not new:
            raise DataError(
                f"task.add_to: {self.origin} knows every label of the training cases already: "
                f"{some(list(names), 20)}. Add cases of the new label (columns.label says where labels are), or train "
                "without add_to."
            )
        if unseen := [name for name in new if not counts[cases.labels.index(name)]]:
            raise DataError(
                f"no training case has the new label(s) {', '.join(unseen)}. Add some, or take the label out of "
                "task.tree.nodes."
            )
        learning = set(growing(cases.labels, known=len(self.known)))
        for group in cases.labels.siblings:
            learn = [names[node] for node in group.ids if node in learning]
            lacking = [names[node] for node in group.ids if not counts[node]]
            if learn and lacking:
                raise DataError(
                    f"{', '.join(learn)} cannot learn to differ from {', '.join(lacking)}, of which there is no "
                    "training case: add some of the cases that the router was trained with. Without them everything "
                    f"would be called {' or '.join(learn)}."
                )
        return f"adding {', '.join(new)} to the {len(self.known)} labels of {self.origin}, whose tower stays"


def read_growth(origin: str) -> Growth:
    """The bundle that labels are added to; one that cannot grow is a ConfigError."""
    manifest = read_manifest(local_bundle(origin))
    task = manifest.task
    if task.multi_label or task.tree.head == "cascade":
        what = "takes any number of labels a case" if task.multi_label else "is a cascade"
        raise ConfigError(
            f"task.add_to: {origin} {what}; labels are added to a flat or joint router of one label a case. Train it "
            "anew with the new cases."
        )
    return Growth(origin, manifest)


def _different(stated: Mapping[str, Any], own: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The keys in both whose values differ, in words."""
    for key in stated.keys() & own.keys():
        here, there, dotted = stated[key], own[key], f"{path}.{key}".lstrip(".")
        if isinstance(here, dict) and isinstance(there, dict):
            yield from _different(here, there, dotted)
        elif here != there:
            yield f"{dotted} is {json.dumps(here)}, the router's is {json.dumps(there)}"
