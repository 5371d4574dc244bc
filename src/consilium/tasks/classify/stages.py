"""The stages of a cascade: a flat run for every inner node of the label tree that tells children apart."""

from __future__ import annotations

from typing import Any

from consilium.core.config import nearest
from consilium.core.errors import ConfigError, DataError
from consilium.core.labels import LabelTree
from consilium.data.cases.cases import Studied
from consilium.losses.config import ClassificationLossConfig
from consilium.tasks.answers.config import TreeConfig
from consilium.tasks.answers.targets import LabelKnowledge, label_counts
from consilium.tasks.classify.config import ClassifyConfig
from consilium.tasks.classify.nodes import choices, node_folder
from consilium.tasks.family import Stage


def node_stages(section: ClassifyConfig, labels: LabelTree) -> list[Stage]:
    """A stage for each node, which learns its children from the cases below it."""
    return [_stage(section, name, children) for name, children in _children(labels).items()]


def _stage(section: ClassifyConfig, node: str, children: list[str]) -> Stage:
    data: dict[str, Any] = {"filters": {"node": node}}
    if (given := section.tree.statistics.get(node)) is not None:
        data["image"] = {"statistics": "given", "mean": list(given.mean), "std": list(given.std)}
    own = {"tree": TreeConfig(nodes=children), "loss": _node_loss(section.loss, children)}
    return Stage(node, node_folder(node), section.model_copy(update=own), {"data": data})


def _node_loss(loss: ClassificationLossConfig, children: list[str]) -> ClassificationLossConfig:
    if not isinstance(loss.class_weights, dict):
        return loss
    own = {name: weight for name, weight in loss.class_weights.items() if name in children}
    return loss.model_copy(update={"class_weights": own})


def _children(labels: LabelTree) -> dict[str, list[str]]:
    """The labels that each network tells apart, by its node."""
    return {name: [labels.names[child] for child in group.ids] for name, group in choices(labels).items()}


def check_nodes(section: ClassifyConfig, studied: Studied[LabelKnowledge]) -> list[str]:
    """Refuse settings of nodes that are not there, and nodes with too few cases for a network; notes on the others."""
    labels = studied.knowledge.tree
    inner = [labels.name_of(group.parent) for group in labels.siblings]
    for name in section.tree.statistics:
        if name not in inner:
            raise ConfigError(f"task.tree.statistics: '{name}' is no inner node{nearest(name, inner)}")
    weights = section.loss.class_weights
    for name in weights if isinstance(weights, dict) else ():
        if name not in labels.names:
            raise ConfigError(f"task.loss.class_weights: '{name}' is not a label{nearest(name, labels.names)}")
    _refuse_small(studied, labels)
    unused = sorted(section.tree.statistics.keys() - choices(labels))
    return [f"task.tree.statistics of {name} are not used: it has one child, and so no network." for name in unused]


def _refuse_small(studied: Studied[LabelKnowledge], labels: LabelTree) -> None:
    targets, rows = studied.known_targets, studied.cases.rows
    train, val = (
        dict(zip(labels.names, label_counts(labels, targets[rows[split]]), strict=True)) for split in ("train", "val")
    )
    lacking = []
    for name, children in _children(labels).items():
        seen = [child for child in children if train[child]]
        if len(seen) < 2:
            found = f"of its {len(children)} children only {seen[0]} has" if seen else "none of its children has"
            lacking.append(f"{name}: {found} training cases")
        elif not any(val[child] for child in children):
            lacking.append(f"{name}: no validation case has a label below it")
    if lacking:
        listed = "".join(f"\n  - {line}" for line in lacking)
        raise DataError(
            f"a cascade needs training cases of two children, and a validation case, below every inner node:{listed}\n"
            "Add cases, take these labels out (task.tree.nodes, data.filters.labels), or choose task.tree.head: joint."
        )
