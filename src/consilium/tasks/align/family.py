"""What the house asks about ``align``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from consilium.core.contracts import Evaluator, Outputs
from consilium.core.errors import DataError
from consilium.core.reporter import counted
from consilium.core.section import Knowledge
from consilium.data.cases.cases import Cases, Studied
from consilium.data.config import ImageConfig
from consilium.evaluation.config import EvaluationConfig
from consilium.evaluation.report.parts import ReportParts
from consilium.evaluation.retrieval.evaluator import RetrievalEvaluator
from consilium.evaluation.retrieval.report import retrieval_parts
from consilium.models.config import TextConfig
from consilium.tasks.align.config import AlignConfig
from consilium.tasks.family import Family, Member, Settled

if TYPE_CHECKING:
    from consilium.models.tokenizer import Tokenizer
    from consilium.tasks.align.task import Align


class AlignKnowledge(Knowledge):
    """The tokenizer (the text of its ``tokenizer.json``), and once it is built what the text encoder is made of."""

    tokenizer: str
    architecture: dict[str, Any] | None = None


class AlignFamily(Family[AlignConfig, AlignKnowledge, "Align"]):
    """Experts of captioned images: retrieval both ways, and embeddings."""

    knowledge = AlignKnowledge

    def study(
        self, section: AlignConfig, cases: Cases, *, known: AlignKnowledge | None, learns: bool
    ) -> Studied[AlignKnowledge]:
        """The tokenizer; encoders from scratch learn theirs from the training texts."""
        if known is not None and not learns:
            return Studied(cases, known)
        texts = [cases.table.texts[row] or "" for row in cases.rows["train"].tolist()]
        if len(different := set(texts) - {""}) < 2:
            what = "are all the same" if different else "are all empty"
            raise DataError(
                f"the {counted(len(texts), 'training text')} {what}, so that there is nothing to tell apart. Check "
                "the column of texts (columns.text of a source), and the splits."
            )
        tokenizer = _tokenizer(section.text, tuple(texts) if section.text.from_scratch else ())
        knowledge = AlignKnowledge(training_cases=len(texts), tokenizer=tokenizer.definition)
        cut = tokenizer.count_cut(texts)
        if learns and cut:
            note = (
                f"{cut} of {counted(len(texts), 'training text')} are longer than the text tower reads "
                f"(task.text.context_length: {section.text.context_length} tokens), and are cut."
            )
            cases = replace(cases, notes=[*cases.notes, note])
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
        """Two towers with their projections."""
        from consilium.models.projection import build_projection
        from consilium.models.text import build_text
        from consilium.models.tokenizer import Tokenizer
        from consilium.models.vision import build_vision
        from consilium.tasks.align.task import Align

        tokenizer = Tokenizer(knowledge.tokenizer)
        vision = build_vision(section.vision, image_size=image.size, weights=weights)
        text = build_text(section.text, tokenizer=tokenizer, architecture=None if weights else knowledge.architecture)
        widths = {"image": vision.num_features, "text": text.num_features}
        projections = {
            side: build_projection(section.projection, in_features=width, width=section.embedding_size)
            for side, width in widths.items()
        }
        return Align(section, vision=vision, text=text, projections=projections, tokenizer=tokenizer)

    def evaluator(self, section: AlignConfig, knowledge: AlignKnowledge, *, evaluation: EvaluationConfig) -> Evaluator:
        """Retrieval both ways."""
        return RetrievalEvaluator(config=evaluation)

    def report(self, section: AlignConfig, knowledge: AlignKnowledge) -> ReportParts:
        """Ranks beside chance, and what lies nearest."""
        return retrieval_parts()

    def settle(
        self, section: AlignConfig, task: Align, knowledge: AlignKnowledge, outputs: Mapping[str, Outputs]
    ) -> Settled[AlignKnowledge]:
        """What the text encoder is made of, so that a bundle needs no hub."""
        return Settled(knowledge.model_copy(update={"architecture": task.text.architecture}), outputs)


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
def _tokenizer(config: TextConfig, texts: tuple[str, ...]) -> Tokenizer:
    from consilium.models.text import build_tokenizer

    return build_tokenizer(config, texts=texts)


FAMILY = AlignFamily()
