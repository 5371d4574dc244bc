"""What the house asks about ``align``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from consilium.core.config import merge
from consilium.core.errors import DataError
from consilium.core.evaluation import Evaluator, Outputs
from consilium.core.reporter import counted
from consilium.data.cases.cases import Cases, Studied
from consilium.data.config import ImageConfig
from consilium.evaluation.config import EvaluationConfig, ReportConfig
from consilium.evaluation.report.parts import AddedTable, ReportParts
from consilium.evaluation.retrieval.evaluator import RetrievalEvaluator
from consilium.evaluation.retrieval.report import retrieval_parts, views_parts
from consilium.evaluation.retrieval.views import ViewsEvaluator
from consilium.models.config import TextConfig
from consilium.tasks.align.config import AlignConfig, ModelConfig
from consilium.tasks.align.knowledge import AlignKnowledge
from consilium.tasks.align.look import missing_views, refuse_missing_views
from consilium.tasks.family import Brought, Family, Known, Member, Settled
from consilium.tasks.texts import cut_texts, refuse_foreign_texts, training_texts
from consilium.tasks.towers import images_of

if TYPE_CHECKING:
    from consilium.models.tokenizer import Tokenizer
    from consilium.models.trained import DualEncoder
    from consilium.tasks.align.task import Align


class AlignFamily(Family[AlignConfig, AlignKnowledge, "Align"]):
    """Experts of captioned images: retrieval both ways, and embeddings."""

    knowledge = AlignKnowledge

    def study(
        self, section: AlignConfig, cases: Cases, *, known: AlignKnowledge | None, learns: bool
    ) -> Studied[AlignKnowledge]:
        """The tokenizer; encoders from scratch learn theirs from the training texts, a bundle's knows its own."""
        if known is not None and not learns:
            return Studied(cases, known)
        if known is None and not learns and section.model is not None:  # which is judged as it came
            tokenizer = _tokenizer(section.text, section.model, ())
            return Studied(cases, AlignKnowledge(training_cases=0, tokenizer=tokenizer.definition))
        texts = [text for row in cases.rows["train"].tolist() for text in cases.table.captions(row)]
        if len(set(texts)) < 2:
            what = (
                f"the {counted(len(texts), 'training text')} are all the same"
                if texts
                else "no training case has a text"
            )
            raise DataError(
                f"{what}, so that there is nothing to tell apart. Check the column of texts (columns.text of a "
                "source), and the splits."
            )
        if known is not None:
            from consilium.models.tokenizer import recut

            tokenizer = recut(known.tokenizer, context_length=section.text.context_length)
        else:
            scratch = section.model is None and section.text.from_scratch
            tokenizer = _tokenizer(section.text, section.model, tuple(texts) if scratch else ())
        knowledge = AlignKnowledge(training_cases=len(cases.rows["train"]), tokenizer=tokenizer.definition)
        if learns:
            by_source = training_texts(cases)
            refuse_foreign_texts(by_source, tokenizer)
            refuse_missing_views(cases, section)
            cases = replace(
                cases, notes=[*cases.notes, *cut_texts(by_source, tokenizer), *missing_views(cases, section)]
            )
        return Studied(cases, knowledge, _alike(section.loss.positives, cases))

    def build(
        self,
        section: AlignConfig,
        knowledge: AlignKnowledge,
        *,
        image: ImageConfig,
        members: Mapping[str, Member],
        weights: bool,
    ) -> Align:
        """Two towers with their projections, of a whole pretrained model or each by itself."""
        from consilium.tasks.align.build import build_align

        task = build_align(section, knowledge, image_size=image.size, members=members, weights=weights)
        if section.feature_distillation is not None and (teacher := members.get(str(section.teacher))) is not None:
            from consilium.tasks.align.teacher import teacher_of

            task.teacher = teacher_of(task, section.feature_distillation, teacher, image)
        return task

    def brings(self, section: AlignConfig, borrowed: Mapping[str, Known]) -> Brought:
        """Settings of a whole model, or of towers that are no plain timm models."""
        from consilium.tasks.align.build import brought

        found = brought(section, borrowed)
        if section.teacher is None:
            return found
        return replace(found, settings=merge(found.settings, images_of(borrowed[section.teacher])))

    def evaluator(self, section: AlignConfig, knowledge: AlignKnowledge, *, evaluation: EvaluationConfig) -> Evaluator:
        """Retrieval both ways, with named views also of each of them."""
        if section.view_names:
            return ViewsEvaluator(section.view_names, config=evaluation)
        return RetrievalEvaluator(config=evaluation)

    def report(self, section: AlignConfig, knowledge: AlignKnowledge) -> ReportParts:
        """Ranks beside chance, and what lies nearest."""
        return views_parts() if section.view_names else retrieval_parts()

    def added(self, task: Align, cases: Cases, split: str, *, report: ReportConfig) -> list[AddedTable]:
        """The terms of sparse texts."""
        from consilium.tasks.align.terms import terms_table

        found = terms_table(task, cases, split, report=report)
        return [] if found is None else [found]

    def settle(
        self, section: AlignConfig, task: Align, knowledge: AlignKnowledge, outputs: Mapping[str, Outputs]
    ) -> Settled[AlignKnowledge]:
        """What the task is made of, so that a bundle needs no hub."""
        made_of = {
            "architecture": task.text.architecture,
            "pooling": task.text.pooling,
            "image": task.vision.layout,
            "projections": task.projections,
        }
        return Settled(knowledge.model_copy(update=made_of), outputs)

    def trained(self, task: Align) -> DualEncoder | None:
        """Two towers and their projections; with named views they are no single pair of an image and a text."""
        if task.views:
            return None
        from consilium.models.trained import DualEncoder
        from consilium.tasks.towers import layout_of

        bias = getattr(task.loss, "bias", None)
        return DualEncoder(
            vision=task.vision,
            layout=layout_of(task.vision),
            image_projection=task.image_projection,
            text=task.text,
            text_projection=task.text_projection,
            tokenizer=task.tokenizer,
            log_scale=float(task.loss.scale.detach().log()),
            bias=None if bias is None else float(bias.detach()),
            learned_vocabulary=task.config.model is None and task.config.text.learns_words,
        )


def _alike(positives: str, cases: Cases) -> np.ndarray | None:
    """A number for each case, equal for cases that are right answers for each other, -1 for a case without labels.

    None where the texts of a batch say it. Labels that no training case has are a DataError.
    """
    table = cases.table
    if positives == "same_group":
        return np.unique(table.groups, return_inverse=True)[1]
    if positives != "same_label":
        return None
    if not any(table.labels[row] for row in cases.rows["train"].tolist()):
        raise DataError(
            "task.loss.positives is same_label, but no training case has a label. Name their column (columns.label of "
            "a source), or take same_text."
        )
    numbers: dict[tuple[str, ...], int] = {}
    return np.array(
        [numbers.setdefault(tuple(sorted(labels)), len(numbers)) if labels else -1 for labels in table.labels]
    )


@lru_cache(maxsize=2)  # a training studies its cases more than once
def _tokenizer(config: TextConfig, model: ModelConfig | None, texts: tuple[str, ...]) -> Tokenizer:
    from consilium.models.checkpoints.find import find_model
    from consilium.models.checkpoints.pretrained import text_source
    from consilium.models.text import build_tokenizer

    source = None if model is None else text_source(find_model(model.name, weights=model.pretrained, views=True))
    return build_tokenizer(config, texts=texts, source=source)


FAMILY = AlignFamily()
