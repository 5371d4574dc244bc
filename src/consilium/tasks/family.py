"""What the house asks about one kind of task; a family answers in ``tasks/{kind}/family.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from consilium.core.answers import Calibration
from consilium.core.errors import ConfigError
from consilium.core.evaluation import Evaluation, Evaluator, Outputs
from consilium.core.labels import LabelTree
from consilium.core.reporter import Reporter
from consilium.core.section import Knowledge, TaskSection
from consilium.data.batches.readers import Images
from consilium.data.cases.cases import Cases, Studied
from consilium.data.cases.load import Study
from consilium.data.config import ImageConfig
from consilium.evaluation.config import AveragingConfig, EvaluationConfig, ReportConfig
from consilium.evaluation.labels.recalibration import SiteCalibration
from consilium.evaluation.labels.saliency import SaliencyMap
from consilium.evaluation.report.parts import AddedTable, ReportParts

if TYPE_CHECKING:
    import numpy as np

    from consilium.core.contracts import Batch
    from consilium.core.task import Task
    from consilium.models.trained import Trained

SectionT_contra = TypeVar("SectionT_contra", bound=TaskSection, contravariant=True)
KnowledgeT = TypeVar("KnowledgeT", bound=Knowledge)
TaskT = TypeVar("TaskT", bound="Task")


class Ask(Protocol):
    """Asks a task about rows of images, each seen once."""

    def __call__(
        self, source: Images, rows: np.ndarray, *, progress: Callable[[int, int], None]
    ) -> Mapping[str, np.ndarray]:
        """The evidence of the task, arrays [N, ...] by name."""
        ...


@dataclass(frozen=True)
class Settled(Generic[KnowledgeT]):
    """What validation taught after training, the outputs as they then are, and what to warn of."""

    knowledge: KnowledgeT
    outputs: Mapping[str, Outputs]


@dataclass(frozen=True)
class Site:
    """Whose cases a calibration is chosen on, what was given as data, and the accuracy wanted; None: as before."""

    name: str
    data: str
    wanted_accuracy: float | None


@dataclass(frozen=True)
class Recalibrated(Generic[KnowledgeT]):
    """What a bundle knows with a calibration of a site's cases, and what that is worth."""

    knowledge: KnowledgeT
    found: SiteCalibration


@dataclass(frozen=True)
class Pooled(Generic[KnowledgeT]):
    """What several models said of the cases that each was tested on, judged together."""

    knowledge: KnowledgeT
    evaluation: Evaluation


@dataclass(frozen=True)
class Known:
    """What a bundle says of itself: its task, what it knows, the images that it takes, and how it looks at them."""

    section: TaskSection
    knowledge: Knowledge
    image: ImageConfig
    looks: AveragingConfig


@dataclass(frozen=True)
class Member(Known):
    """A bundle inside another, or one that a config names, with its weights."""

    task: Task


@dataclass(frozen=True)
class Labelled:
    """What the answers of a task with labels are made of.

    ``threshold``: the least probability of one of several. ``seen``: values that training cases have in some columns.
    """

    labels: LabelTree
    multi_label: bool
    calibration: Calibration
    threshold: float
    seen: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Adopted:
    """What a config leaves to a bundle that it names: ``settings`` it may not contradict, ``forced`` it cannot set."""

    settings: Mapping[str, Any]
    forced: Mapping[str, Any]


@dataclass(frozen=True)
class Brought:
    """What pretrained models bring beside weights: ``settings`` that hold unless the config says otherwise.

    ``knowledge`` is what the cases need not teach any more.
    """

    settings: Mapping[str, Any]
    knowledge: Knowledge | None = None


@dataclass(frozen=True)
class Stage:
    """One ordinary run inside a training: where in its folder, its task, and how the rest of its config differs."""

    name: str
    folder: str
    section: TaskSection
    changes: Mapping[str, Any]


class Family(Protocol[SectionT_contra, KnowledgeT, TaskT]):
    """All that the house asks about one kind of task. Those with a body have a usual answer, which is inherited."""

    @property
    def knowledge(self) -> type[KnowledgeT]:
        """The model of what a bundle of this family knows."""
        ...

    def study(
        self, section: SectionT_contra, cases: Cases, *, known: KnowledgeT | None, learns: bool
    ) -> Studied[KnowledgeT]:
        """What is to be learned of the cases, and what they teach before any model is built; a pure function.

        ``known`` comes first. With ``learns`` the cases may add to it; else they are only judged by it.
        """
        ...

    def build(
        self,
        section: SectionT_contra,
        knowledge: KnowledgeT,
        *,
        image: ImageConfig,
        members: Mapping[str, Member],
        weights: bool,
    ) -> TaskT:
        """The task of a section; without ``weights`` pretrained ones are skipped, since a bundle brings its own."""
        ...

    def evaluator(self, section: SectionT_contra, knowledge: KnowledgeT, *, evaluation: EvaluationConfig) -> Evaluator:
        """What judges the evidence of the task."""
        ...

    def report(self, section: SectionT_contra, knowledge: KnowledgeT) -> ReportParts:
        """What the family adds to a report."""
        ...

    def settle(
        self, section: SectionT_contra, task: TaskT, knowledge: KnowledgeT, outputs: Mapping[str, Outputs]
    ) -> Settled[KnowledgeT]:
        """What validation teaches at the end of a training."""
        return Settled(knowledge, outputs)

    def look_back(
        self,
        section: SectionT_contra,
        task: TaskT,
        studied: Studied[KnowledgeT],
        *,
        evaluation: EvaluationConfig,
        show: Callable[[Callable[[Batch], None]], None],
    ) -> KnowledgeT:
        """What the training cases teach at the end of a training, before anything is judged: to the task, and to know.

        ``show`` goes through all of them once, batch by batch, each image seen once.
        """
        return studied.knowledge

    def stages(self, section: SectionT_contra, knowledge: KnowledgeT) -> Sequence[Stage]:
        """The runs that the training is made of, whose bundles become the members of its own; (): it is one run."""
        return ()

    def together(self, members: Mapping[str, Member]) -> Known:
        """What an ensemble of bundles says of itself; members that do not go together are a DataError."""
        raise ConfigError(
            "an ensemble averages probabilities of labels, and these bundles answer with none; give bundles of a task "
            "that answers with labels."
        )

    def ensemble(self, section: SectionT_contra, knowledge: KnowledgeT, *, members: Mapping[str, Member]) -> Task:
        """The members of an ensemble as one task."""
        raise ConfigError("bundles of this kind have no probabilities to average.")

    def image(self, members: Mapping[str, Member]) -> ImageConfig:
        """The images that the members of a bundle take together."""
        return next(iter(members.values())).image

    def adopted(self, section: SectionT_contra, origin: Known) -> Adopted:
        """What the config leaves to the bundle that it goes on from."""
        return Adopted({}, {})

    def brings(self, section: SectionT_contra, borrowed: Mapping[str, Known]) -> Brought:
        """What the pretrained models of a section bring; ``borrowed`` are the bundles that it takes towers of."""
        return Brought({})

    def pooled(
        self,
        section: SectionT_contra,
        tested: Sequence[tuple[KnowledgeT, Outputs]],
        *,
        evaluation: EvaluationConfig,
    ) -> Pooled[KnowledgeT] | None:
        """The folds of a cross-validation judged in one list; None: outputs of different models do not compare."""
        return None

    def says_little(self, studied: Studied[KnowledgeT]) -> list[str]:
        """What makes figures of the test cases say little."""
        return []

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
        """Maps of what answers depend on, for the report; ``ask`` runs the task on other images."""
        return []

    def added(self, task: TaskT, cases: Cases, split: str, *, report: ReportConfig) -> list[AddedTable]:
        """Tables for the report that the task makes of the judged cases once more."""
        return []

    def labelled(self, section: SectionT_contra, knowledge: KnowledgeT) -> Labelled | None:
        """The labels of the task's answers; None: they have none."""
        return None

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
        """Temperatures and thresholds chosen anew on the cases of a site; asked where answers have probabilities."""
        raise ConfigError("these answers have no probabilities, so that there is nothing to calibrate.")

    def restored(self, knowledge: KnowledgeT, name: str) -> KnowledgeT:
        """What a bundle knows with the calibration of that name again, one of those that it keeps."""
        raise ConfigError(f"this bundle keeps no calibrations, and so none that is called '{name}'.")

    def trained(self, task: TaskT) -> Trained | None:
        """What a trained task is made of, for other libraries; None: it is no single model."""
        return None

    def doubts(self, section: SectionT_contra, validation: Evaluation) -> list[str]:
        """What the figures of validation say against what was settled on it."""
        return []


def family_of(section: TaskSection) -> Family[Any, Any, Any]:
    """The family of a checked section: ``consilium.tasks.{kind}.family.FAMILY``."""
    found: Family[Any, Any, Any] = import_module(f"consilium.tasks.{section.kind}.family").FAMILY
    return found


def studying(section: TaskSection, *, learns: bool) -> Study[Any]:
    """The ``study`` of a section's family, as data is loaded with."""
    family = family_of(section)

    def study(cases: Cases, *, known: Any) -> Studied[Any]:
        return family.study(section, cases, known=known, learns=learns)

    return study
