"""Judging experts of named views: the case, each of its views, and how alike two of them are.

Axes in names: N case in a set, K text of a case, V view, F number of an embedding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from consilium.core.errors import DataError
from consilium.core.evaluation import Evaluation, Outputs
from consilium.core.reporter import counted
from consilium.evaluation.config import EvaluationConfig
from consilium.evaluation.retrieval import tables as t
from consilium.evaluation.retrieval.cases import read_cases, ways
from consilium.evaluation.retrieval.evaluator import RetrievalEvaluator
from consilium.evaluation.retrieval.symmetry import exchange, symmetry


class ViewsEvaluator(RetrievalEvaluator):
    """As ``RetrievalEvaluator``, for cases that have all their views; each view is judged in its own space, too.

    Arrays of the outputs, beside those of ``RetrievalEvaluator``, which are of cases: the same with the name of a view
    before theirs (``left_image_embeddings``), zeros where a case lacks it; ``tower_image_embeddings`` float [N, V, F],
    in which views compare; and of two views ``exchanged_image_embeddings`` [N, F], of cases whose views have changed
    places. Texts of a case count in every space.
    """

    def __init__(self, names: tuple[str, ...], *, config: EvaluationConfig) -> None:
        super().__init__(config=config)
        self._names = names

    def quick(self, outputs: Outputs) -> dict[str, float | None]:
        """The plain figures of cases that have all views."""
        return super().quick(self._whole(outputs))

    def evaluate(self, outputs: Outputs, *, split: str) -> Evaluation:
        """As without views.

        Tables more: ``retrieval_views`` (each view, each direction), and of two views ``symmetry`` (how alike the views
        of a case are, and those of different groups) and ``exchange`` (what changes where they change places).
        """
        whole = self._whole(outputs)
        found = super().evaluate(whole, split=split)
        tables = {"retrieval_views": [row for name in self._names for row in self._of_view(outputs, name)]}
        if len(self._names) == 2:
            tables |= {
                "symmetry": symmetry(whole, config=self._config),
                "exchange": exchange(whole, config=self._config),
            }
        notes = list(found.tables.get("notes", []))
        if missing := len(outputs.ids) - len(whole.ids):
            notes.append(
                {
                    "note": f"{missing} of {counted(len(outputs.ids), 'case')} lack a view ({', '.join(self._names)}): "
                    "the figures of cases leave them out, those of views have what is there."
                }
            )
        tables = {name: rows for name, rows in {**found.tables, **tables, "notes": notes}.items() if rows}
        return replace(found, tables=tables)

    def _whole(self, outputs: Outputs) -> Outputs:
        rows = np.flatnonzero(outputs.arrays["image_embeddings"].any(axis=1))
        if not len(rows):
            raise DataError(
                f"none of {counted(len(outputs.ids), 'case')} has all views ({', '.join(self._names)}), and retrieval "
                "is judged for cases that have."
            )
        return outputs.take(rows)

    def _of_view(self, outputs: Outputs, name: str) -> list[dict[str, Any]]:
        """The figures of one view among all cases that have it; none where nothing can be wrong."""
        rows = np.flatnonzero(outputs.arrays[f"{name}_image_embeddings"].any(axis=1))
        own = {key: outputs.arrays[f"{name}_{key}"] for key in ("image_embeddings", "text_embeddings", "scale")}
        if not len(rows):
            return []
        cases = read_cases(replace(outputs, arrays={**own, "same_text": outputs.arrays["same_text"]}).take(rows))
        found = ways(cases)
        figures = self._estimates(cases, found, np.ones(len(cases.ids), dtype=bool))
        return [
            {"view": name, **t.summary(cases, way, figures)} for way in found if way.level == "text" and way.defined
        ]
