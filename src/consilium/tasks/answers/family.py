"""What the house asks about every task that answers with labels, answered once."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from consilium.core.answers import UNKNOWN, NamedCalibration
from consilium.core.config import nearest
from consilium.core.errors import ConfigError, DataError
from consilium.core.evaluation import Evaluation, Evaluator, Outputs
from consilium.core.labels import LabelTree, class_order, reading_order
from consilium.core.reporter import Reporter
from consilium.data.cases.cases import Cases, Studied
from consilium.data.config import ImageConfig
from consilium.evaluation.config import AnswersConfig, EvaluationConfig, ReportConfig
from consilium.evaluation.labels.classification import ClassificationEvaluator
from consilium.evaluation.labels.report import label_parts
from consilium.evaluation.labels.saliency import SaliencyMap
from consilium.evaluation.labels.tree import TreeEvaluator
from consilium.evaluation.labels.wording import rough_thresholds
from consilium.evaluation.report.parts import ReportParts
from consilium.tasks.answers.config import LabelSection
from consilium.tasks.answers.images import common_image
from consilium.tasks.answers.pool import pool
from consilium.tasks.answers.targets import LabelKnowledge, study_labels
from consilium.tasks.family import Ask, Family, Known, Labelled, Member, Pooled, Recalibrated, Site

if TYPE_CHECKING:
    from consilium.tasks.answers.answering import Answering

SectionT_contra = TypeVar("SectionT_contra", bound=LabelSection, contravariant=True)
KnowledgeT = TypeVar("KnowledgeT", bound=LabelKnowledge)
TaskT = TypeVar("TaskT", bound="Answering")


def study_answers(
    section: LabelSection, cases: Cases, *, known: LabelKnowledge | None, learns: bool
) -> Studied[LabelKnowledge]:
    """The classes of a section, and the target of each case."""
    return study_labels(
        cases,
        multi_label=section.multi_label,
        nested=section.tree.nested,
        given=section.tree.labels(),
        known=known,
        learns=learns,
    )


def _answers(section: LabelSection, knowledge: LabelKnowledge) -> AnswersConfig:
    """How answers are given and judged; of any number of labels by the threshold of the calibration, if any."""
    thresholds = knowledge.calibration.thresholds if section.multi_label else []
    return section.answers.model_copy(update={"threshold": thresholds[0]}) if thresholds else section.answers


def _refuse_unknown(labels: LabelTree, *, key: str) -> None:
    if UNKNOWN in labels.names:
        raise DataError(
            f"a label is '{UNKNOWN}', which is also what task.answers.{key} answers where the model is "
            f"not sure. Give the label another name (data.rename_labels: {{{UNKNOWN}: other}})."
        )


class LabelFamily(Family[SectionT_contra, KnowledgeT, TaskT]):
    """A family whose tasks are ``Answering``."""

    def evaluator(self, section: SectionT_contra, knowledge: KnowledgeT, *, evaluation: EvaluationConfig) -> Evaluator:
        """What judges probabilities of labels.

        Where answers may be "unknown", a label of that name is a DataError.
        """
        labels, answers = knowledge.tree, _answers(section, knowledge)
        if section.multi_label:
            return ClassificationEvaluator(labels, multi_label=True, config=evaluation, answers=answers)
        if answers.wanted_accuracy is not None or answers.distance is not None:
            _refuse_unknown(labels, key="distance" if answers.wanted_accuracy is None else "wanted_accuracy")
        return TreeEvaluator(
            labels,
            config=evaluation,
            answers=answers,
            calibration=knowledge.calibration,
            order=section.tree.order,
            seen=knowledge.seen,
        )

    def labelled(self, section: SectionT_contra, knowledge: KnowledgeT) -> Labelled:
        """The classes, and how validation settled their answers."""
        threshold = _answers(section, knowledge).threshold
        return Labelled(knowledge.tree, section.multi_label, knowledge.calibration, threshold, knowledge.seen)

    def report(self, section: SectionT_contra, knowledge: KnowledgeT) -> ReportParts:
        """The leaves, from the lowest to the highest grade where they are grades."""
        leaves = knowledge.tree.leaves
        return label_parts(class_order(leaves, given=section.tree.order) or reading_order(leaves))

    def pooled(
        self,
        section: SectionT_contra,
        tested: Sequence[tuple[KnowledgeT, Outputs]],
        *,
        evaluation: EvaluationConfig,
    ) -> Pooled[KnowledgeT]:
        """The classes are judged; answers that may stop hang on the thresholds of each model, and are not."""
        knowledge, outputs = pool(tested, multi_label=section.multi_label)
        evaluator = ClassificationEvaluator(
            knowledge.tree,
            multi_label=section.multi_label,
            config=evaluation,
            answers=section.answers,
            order=section.tree.order,
        )
        return Pooled(knowledge, evaluator.evaluate(outputs, split="crossval"))

    def says_little(self, studied: Studied[KnowledgeT]) -> list[str]:
        """A single label is no test of telling labels apart."""
        targets = studied.known_targets[studied.cases.rows["test"]]
        if targets.ndim > 1 or len(present := set(targets.tolist())) != 1:
            return []
        label = studied.knowledge.labels[present.pop()]
        return [f"all cases tested have one label ({label}): only how many are found can be measured."]

    def pictures(
        self,
        task: TaskT,
        studied: Studied[KnowledgeT],
        outputs: Mapping[str, Outputs],
        *,
        image: ImageConfig,
        ask: Ask,
        report: ReportConfig,
        reporter: Reporter,
    ) -> list[SaliencyMap]:
        """Which places of a few images the answer depends on."""
        from consilium.tasks.answers.occlusion import saliency_maps

        return saliency_maps(task, studied, outputs, image=image, ask=ask, report=report, reporter=reporter)

    def doubts(self, section: SectionT_contra, validation: Evaluation) -> list[str]:
        """Thresholds that validation could not give, or gave from few answers."""
        return [] if section.answers.wanted_accuracy is None else rough_thresholds(validation)

    def recalibrated(
        self,
        section: SectionT_contra,
        task: TaskT,
        knowledge: KnowledgeT,
        outputs: Outputs,
        *,
        site: Site,
        evaluation: EvaluationConfig,
    ) -> Recalibrated[KnowledgeT]:
        """The calibration of the site, beside those that the bundle knew before."""
        from consilium.tasks.answers.site import calibrate_on_site

        if section.multi_label and site.wanted_accuracy is not None:
            raise ConfigError(
                f"--wanted-accuracy is {site.wanted_accuracy:g}, but this bundle gives any number of labels a case, "
                "each from a threshold on, and leaves nothing unanswered; leave it out."
            )
        if site.wanted_accuracy is not None:
            _refuse_unknown(knowledge.tree, key="wanted_accuracy")
        kept = knowledge.calibrations or [
            NamedCalibration(name="training", data="", cases=0, groups=0, created="", calibration=knowledge.calibration)
        ]
        if site.name in (names := [own.name for own in kept]):
            raise ConfigError(
                f"the bundle already has a calibration called '{site.name}' (it has {', '.join(names)}); give this one "
                "another --name."
            )
        config = section.answers.model_copy(update={"wanted_accuracy": site.wanted_accuracy})
        found = calibrate_on_site(task, knowledge, outputs, config=config, evaluation=evaluation)
        new = NamedCalibration(
            name=site.name,
            data=site.data,
            cases=found.cases,
            groups=found.groups,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            calibration=found.calibration,
        )
        known = {"calibration": found.calibration, "calibrations": [*kept, new]}
        return Recalibrated(knowledge.model_copy(update=known), found)

    def restored(self, knowledge: KnowledgeT, name: str) -> KnowledgeT:
        """With one of the calibrations that it keeps."""
        names = [own.name for own in knowledge.calibrations]
        if name not in names:
            has = "no calibration but that of its training" if not names else ", ".join(names)
            raise ConfigError(f"the bundle has {has}, and none called '{name}'{nearest(name, names) if names else ''}")
        return knowledge.model_copy(update={"calibration": knowledge.calibrations[names.index(name)].calibration})

    def together(self, members: Mapping[str, Member]) -> Known:
        """The section and the looks of the first, images that all take, and what all know of the same labels."""
        from consilium.tasks.answers.shared import refuse_different, shared_knowledge

        refuse_different(members)
        first = next(iter(members.values()))
        image = common_image({name: member.image for name, member in members.items()})
        return Known(first.section, shared_knowledge(members), image, first.looks)

    def ensemble(self, section: SectionT_contra, knowledge: KnowledgeT, *, members: Mapping[str, Member]) -> Answering:
        """The mean of their probabilities."""
        from consilium.tasks.answers.ensemble import Ensemble, built

        return built(Ensemble, section, knowledge, members)
