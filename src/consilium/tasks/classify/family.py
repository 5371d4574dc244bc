"""What the house asks about ``classify``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from consilium.core.errors import BundleError
from consilium.core.evaluation import Evaluation, Outputs
from consilium.data.cases.cases import Cases, Studied
from consilium.data.config import ImageConfig
from consilium.evaluation.config import EvaluationConfig
from consilium.tasks.answers.family import LabelFamily, study_answers
from consilium.tasks.answers.images import common_image
from consilium.tasks.answers.targets import LabelKnowledge
from consilium.tasks.classify.config import ClassifyConfig, LogisticHeadConfig
from consilium.tasks.classify.growth import adopted, check_growth
from consilium.tasks.classify.stages import check_nodes, node_stages
from consilium.tasks.family import Adopted, Brought, Known, Member, Settled, Stage
from consilium.tasks.towers import borrowed_image, vision_settings

if TYPE_CHECKING:
    from consilium.core.contracts import Batch
    from consilium.models.trained import ImageClassifier
    from consilium.tasks.answers.answering import Answering


class ClassifyFamily(LabelFamily[ClassifyConfig, LabelKnowledge, "Answering"]):
    """Routers and other image classifiers, flat or over a label tree, and cascades of them."""

    knowledge = LabelKnowledge

    def study(
        self, section: ClassifyConfig, cases: Cases, *, known: LabelKnowledge | None, learns: bool
    ) -> Studied[LabelKnowledge]:
        """The classes, and the target of each case; what a cascade or a router that grows cannot learn is refused."""
        studied = study_answers(section, cases, known=known, learns=learns)
        if learns and section.staged:
            studied.cases.notes.extend(check_nodes(section, studied))
        if learns and isinstance(section.head, LogisticHeadConfig):
            from consilium.tasks.classify.logistic import units_left_out

            studied = replace(studied, units_N=units_left_out(studied.cases, section.head.leave_out))
        if learns and section.add_to is not None and known is not None:
            check_growth(section.add_to, known, studied)
        return studied

    def build(
        self,
        section: ClassifyConfig,
        knowledge: LabelKnowledge,
        *,
        image: ImageConfig,
        members: Mapping[str, Member],
        weights: bool,
    ) -> Answering:
        """A network; a cascade of those of its inner nodes; or the network of a bundle with further labels."""
        from consilium.tasks.classify.cascade import build_cascade
        from consilium.tasks.classify.task import Classify, build_classify, grown_classify

        if section.tree.head == "cascade":
            return build_cascade(knowledge, members)
        if section.add_to is not None and (origin := members.get(section.add_to)) is not None:
            if not isinstance(origin.task, Classify):
                raise BundleError(f"task.add_to: {section.add_to} is no single network; labels are added to one.")
            return grown_classify(origin.task, section, knowledge)
        source = borrowed_image(section.vision, members)
        return build_classify(section, knowledge, image_size=image.size, weights=weights, source=source)

    def stages(self, section: ClassifyConfig, knowledge: LabelKnowledge) -> Sequence[Stage]:
        """A cascade trains a flat network for every inner node."""
        return node_stages(section, knowledge.tree) if section.staged else ()

    def image(self, members: Mapping[str, Member]) -> ImageConfig:
        """Each network of a cascade normalises for itself."""
        return common_image({name: member.image for name, member in members.items()})

    def brings(self, section: ClassifyConfig, borrowed: Mapping[str, Known]) -> Brought:
        """The images that the tower takes."""
        return Brought(vision_settings(section.vision, borrowed))

    def adopted(self, section: ClassifyConfig, origin: Known) -> Adopted:
        """Tower, head and images of the router that labels are added to."""
        return adopted(str(section.add_to), origin)

    def look_back(
        self,
        section: ClassifyConfig,
        task: Answering,
        studied: Studied[LabelKnowledge],
        *,
        evaluation: EvaluationConfig,
        show: Callable[[Callable[[Batch], None]], None],
    ) -> LabelKnowledge:
        """Where the features of the training cases lie, if distances are asked for, and which values columns have."""
        from consilium.tasks.classify.look_back import measure_distances, seen_values
        from consilium.tasks.classify.task import Classify

        if section.answers.distance is not None and isinstance(task, Classify):
            measure_distances(task, studied.known_targets, show=show)
        return studied.knowledge.model_copy(update={"seen": seen_values(studied.cases, evaluation)})

    def settle(
        self, section: ClassifyConfig, task: Answering, knowledge: LabelKnowledge, outputs: Mapping[str, Outputs]
    ) -> Settled[LabelKnowledge]:
        """Temperatures and thresholds from validation, and what the tower is made of."""
        from consilium.tasks.answers.settle import settle_answers
        from consilium.tasks.classify.task import Classify
        from consilium.tasks.classify.zero_shot import PriorHead

        if isinstance(task, Classify):
            embedding = task.head.layout if isinstance(task.head, PriorHead) else None
            knowledge = knowledge.model_copy(update={"tower": task.tower.layout, "embedding": embedding})
        return settle_answers(task, knowledge, outputs, config=section.answers)

    def doubts(self, section: ClassifyConfig, validation: Evaluation) -> list[str]:
        """Thresholds that validation could not give, or gave from few answers, and features that do not last."""
        found = super().doubts(section, validation)
        if section.answers.distance is not None and section.add_to is None and section.vision.freeze.kind != "tower":
            found.append(
                "task.answers.distance measures in the features of a tower that learned with the head. After strong "
                "fine-tuning images of another kind lie near the classes, too: trust the distance no more than the "
                "report shows of it, or freeze the tower (task.vision.freeze: {kind: tower})."
            )
        return found

    def trained(self, task: Answering) -> ImageClassifier | None:
        """The tower and the head; a cascade has several of both, and a head with a prior fits no other library."""
        from consilium.models.trained import ImageClassifier
        from consilium.tasks.classify.task import Classify
        from consilium.tasks.classify.zero_shot import PriorHead
        from consilium.tasks.towers import layout_of

        if not isinstance(task, Classify) or isinstance(task.head, PriorHead):
            return None
        return ImageClassifier(
            vision=task.tower,
            layout=layout_of(task.tower),
            head=task.head,
            labels=task.labels,
            multi_label=task.multi_label,
            calibration=task.calibration,
            threshold=task.threshold,
            temperatures_K=task.temperatures_K,
            offsets_K=task.offsets_K,
            probabilities=lambda logits_BK: task.prediction(logits_BK).arrays["probabilities"],
        )


FAMILY = ClassifyFamily()
