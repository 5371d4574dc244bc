"""Adding labels to a trained router: what is taken over from its bundle, and what stays as it is.

Its labels keep their ids. Its tower stays, and so do its scores of every label but those above a new one, which learn
to lead there, and the temperatures. So among siblings of which none learns, probabilities stay; elsewhere the odds
among those that do not learn stay.
"""

from __future__ import annotations

from consilium.core.errors import ConfigError, DataError
from consilium.core.reporter import some
from consilium.data.cases.cases import Studied
from consilium.models.config import HOW_IT_LEARNS, FreezeConfig, LinearHeadConfig
from consilium.tasks.answers.targets import LabelKnowledge
from consilium.tasks.classify.config import ClassifyConfig, LogisticHeadConfig
from consilium.tasks.classify.nodes import growing
from consilium.tasks.family import Adopted, Known


def adopted(origin: str, member: Known) -> Adopted:
    """What a training takes over from the router that it adds labels to; one that cannot grow is a ConfigError."""
    section = member.section
    if not isinstance(section, ClassifyConfig) or section.multi_label or section.tree.head == "cascade":
        what = "is no router"
        if isinstance(section, ClassifyConfig):
            what = "takes any number of labels a case" if section.multi_label else "is a cascade"
        raise ConfigError(
            f"task.add_to: {origin} {what}; labels are added to a flat or joint router of one label a case. Train it "
            "anew with the new cases."
        )
    if isinstance(section.head, LogisticHeadConfig) and section.head.zero_shot is not None:
        raise ConfigError(
            f"task.add_to: the head of {origin} has zero-shot as its prior, and knows no word for a new label. Train "
            "it anew with the new cases, or with the new label in task.tree.nodes."
        )
    distance = section.answers.distance
    return Adopted(
        settings={
            "task": {
                "tree": {"head": section.tree.head},
                "vision": section.vision.model_dump(mode="json", exclude=HOW_IT_LEARNS),
                "head": (LinearHeadConfig() if section.solved else section.head).model_dump(mode="json"),
                "answers": {"distance": None if distance is None else distance.model_dump(mode="json")},
            },
            "data": {"image": member.image.model_dump(mode="json", exclude={"max_pixels", "statistics"})},
            "evaluation": {"averaging": member.looks.model_dump(mode="json")},
        },
        forced={
            "task": {"vision": {"freeze": FreezeConfig(kind="tower").model_dump(mode="json")}},
            "data": {"image": {"statistics": "given"}},
        },
    )


def check_growth(origin: str, known: LabelKnowledge, studied: Studied[LabelKnowledge]) -> None:
    """A DataError where no label is new, or where new ones cannot be learned from these cases."""
    labels, counts = studied.knowledge.tree, studied.knowledge.class_counts
    names = labels.names
    new = names[len(known.labels) :]
    if not new:
        raise DataError(
            f"task.add_to: {origin} knows every label of the training cases already: {some(list(names), 20)}. Add "
            "cases of the new label (columns.label says where labels are), or train without add_to."
        )
    if unseen := [name for name in new if not counts[labels.index(name)]]:
        raise DataError(
            f"no training case has the new label(s) {', '.join(unseen)}. Add some, or take the label out of "
            "task.tree.nodes."
        )
    learning = set(growing(labels, known=len(known.labels)))
    for group in labels.siblings:
        learn = [names[node] for node in group.ids if node in learning]
        lacking = [names[node] for node in group.ids if not counts[node]]
        if learn and lacking:
            raise DataError(
                f"{', '.join(learn)} cannot learn to differ from {', '.join(lacking)}, of which there is no training "
                "case: add some of the cases that the router was trained with. Without them everything would be called "
                f"{' or '.join(learn)}."
            )
