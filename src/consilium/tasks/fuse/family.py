"""What the house asks about ``fuse``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from consilium.core.config import merge
from consilium.core.evaluation import Evaluator, Outputs
from consilium.core.reporter import Reporter
from consilium.core.vectors import VectorFacts, read_vectors
from consilium.data.cases.cases import Cases, Studied
from consilium.data.cases.metadata import odd_metadata, study_metadata
from consilium.data.config import ImageConfig
from consilium.evaluation.config import EvaluationConfig, ReportConfig
from consilium.evaluation.labels.modalities import ModalityEvaluator, under
from consilium.evaluation.labels.modality_charts import modality_chart, modality_curves, modality_map
from consilium.evaluation.labels.saliency import SaliencyMap
from consilium.evaluation.report.parts import ReportParts
from consilium.models.config import TextConfig
from consilium.tasks.answers.family import LabelFamily, study_answers
from consilium.tasks.answers.settle import settle_answers
from consilium.tasks.family import Ask, Brought, Known, Member, Settled
from consilium.tasks.fuse.config import FuseConfig
from consilium.tasks.fuse.knowledge import BorrowedText, FuseKnowledge
from consilium.tasks.texts import cut_texts, refuse_foreign_texts, training_texts
from consilium.tasks.towers import text_settings, vision_settings

if TYPE_CHECKING:
    from consilium.models.tokenizer import Tokenizer
    from consilium.tasks.fuse.answers import FuseAnswers
    from consilium.tasks.fuse.task import Fuse


class FuseFamily(LabelFamily[FuseConfig, FuseKnowledge, "Fuse"]):
    """Classifiers of images with texts and metadata, each of which may be missing."""

    knowledge = FuseKnowledge

    def study(
        self, section: FuseConfig, cases: Cases, *, known: FuseKnowledge | BorrowedText | None, learns: bool
    ) -> Studied[FuseKnowledge]:
        """The classes, the target of each case, what metadata means, and the tokenizer.

        Encoders from scratch learn theirs, a bundle's knows its own.
        """
        own = known if isinstance(known, FuseKnowledge) else None
        labels = study_answers(section, cases, known=own, learns=learns)
        vectors, tokenizer = None if own is None else own.vectors, None
        if section.text.kind == "vectors":
            vectors = vectors or _facts(section.text)
        else:
            tokenizer = _tokenizer(section.text, cases, known)
        cases, metadata, notes = labels.cases, None if own is None else own.metadata, list[str]()
        if section.metadata is not None:
            metadata = metadata or study_metadata(cases, section.metadata.columns, kinds=section.metadata.kinds)
            notes = odd_metadata(cases, metadata)
        if learns and tokenizer is not None:
            by_source = training_texts(cases)
            refuse_foreign_texts(by_source, tokenizer)
            notes += cut_texts(by_source, tokenizer)
        cases = replace(cases, notes=[*cases.notes, *notes])
        definition, known_labels = "" if tokenizer is None else tokenizer.definition, labels.knowledge.model_dump()
        knowledge = FuseKnowledge(**known_labels, tokenizer=definition, vectors=vectors, metadata=metadata)
        return replace(labels, cases=cases, knowledge=knowledge)  # type: ignore[return-value]

    def build(
        self,
        section: FuseConfig,
        knowledge: FuseKnowledge,
        *,
        image: ImageConfig,
        members: Mapping[str, Member],
        weights: bool,
    ) -> Fuse:
        """Two towers, an encoder of metadata, their projections, and what fuses them."""
        from consilium.tasks.fuse.build import build_fuse

        return build_fuse(section, knowledge, image_size=image.size, members=members, weights=weights)

    def brings(self, section: FuseConfig, borrowed: Mapping[str, Known]) -> Brought:
        """The images that the image tower takes, and how a bundle's text tower reads texts."""
        settings = merge(vision_settings(section.vision, borrowed), text_settings(section.text, borrowed))
        if section.text.kind != "bundle":
            return Brought(settings)
        known: Any = borrowed[section.text.name].knowledge
        return Brought(settings, BorrowedText(training_cases=0, tokenizer=known.tokenizer))

    def ensemble(self, section: FuseConfig, knowledge: FuseKnowledge, *, members: Mapping[str, Member]) -> FuseAnswers:
        """The mean of their probabilities, also of every subset of the modalities."""
        from consilium.tasks.answers.ensemble import built
        from consilium.tasks.fuse.answers import FuseEnsemble

        ensemble = built(FuseEnsemble, section, knowledge, members)
        ensemble.config = section
        return ensemble

    def evaluator(self, section: FuseConfig, knowledge: FuseKnowledge, *, evaluation: EvaluationConfig) -> Evaluator:
        """What judges labels, and what is left of the figures without a modality."""
        answers = super().evaluator(section, knowledge, evaluation=evaluation)
        return ModalityEvaluator(answers, modalities=section.modalities, labels=knowledge.tree)

    def report(self, section: FuseConfig, knowledge: FuseKnowledge) -> ReportParts:
        """As of every classifier, and what each modality is worth."""
        parts = super().report(section, knowledge)
        seen = "images with texts, either" if section.metadata is None else "images with texts and metadata, each"
        use = f"A classifier of {seen} of which may be missing, with {parts.about}, for research."
        return replace(
            parts,
            intended_use=use,
            sections=("modalities.html.j2", *parts.sections),
            compared={"modalities": "compared_modalities.html.j2"},
            calls={
                **parts.calls,
                "modality_chart": modality_chart,
                "modality_curves": modality_curves,
                "modality_map": modality_map,
            },
        )

    def pictures(
        self,
        task: Fuse,
        studied: Studied[FuseKnowledge],
        outputs: Mapping[str, Outputs],
        *,
        image: ImageConfig,
        ask: Ask,
        report: ReportConfig,
        reporter: Reporter,
    ) -> list[SaliencyMap]:
        """Which places of a few images the answer to the image alone depends on."""
        image_M = [name == "image" for name in task.config.modalities]
        alone = {split: under(own, np.array([image_M] * len(own.ids))) for split, own in outputs.items()}
        return super().pictures(task, studied, alone, image=image, ask=ask, report=report, reporter=reporter)

    def settle(
        self, section: FuseConfig, task: Fuse, knowledge: FuseKnowledge, outputs: Mapping[str, Outputs]
    ) -> Settled[FuseKnowledge]:
        """Temperatures and thresholds from validation, and what the towers are made of."""
        made_of = {
            "tower": task.vision.layout,
            "architecture": task.text.architecture,
            "pooling": task.text.pooling,
        }
        settled = settle_answers(task, knowledge.model_copy(update=made_of), outputs, config=section.answers)
        found = {split: _resettled(task, own) for split, own in settled.outputs.items()}
        return replace(settled, outputs=found)


def _resettled(task: Fuse, outputs: Outputs) -> Outputs:
    """The same outputs with the probabilities of every subset that the task gives now."""
    logits_NSK = torch.from_numpy(outputs.arrays["subset_logits"]).to(task.temperatures_K.device)
    arrays = {name: own.cpu().numpy() for name, own in task.of_subsets(logits_NSK).items()}
    return replace(outputs, arrays={**outputs.arrays, **arrays})


def _tokenizer(config: TextConfig, cases: Cases, known: FuseKnowledge | BorrowedText | None) -> Tokenizer:
    """The tokenizer that is known, cut as the config says, or that of the text tower."""
    from consilium.models.tokenizer import recut

    if known is not None:
        return recut(known.tokenizer, context_length=config.context_length)
    texts = (text for row in cases.rows["train"].tolist() for text in cases.table.captions(row))
    return _built(config, tuple(texts) if config.from_scratch else ())


def _facts(config: TextConfig) -> VectorFacts:
    """What a file says of its vectors; others than the config wants are a DataError."""
    found = read_vectors(config.name).facts
    wanted = VectorFacts(width=found.width, encoder=config.encoder, pooling=config.pooling)
    wanted.refuse_other(found, place=config.name, wanted_by="task.text asks for")
    return found


@lru_cache(maxsize=2)  # a training studies its cases more than once
def _built(config: TextConfig, texts: tuple[str, ...]) -> Tokenizer:
    from consilium.models.text import build_tokenizer

    return build_tokenizer(config, texts=texts)


FAMILY = FuseFamily()
