"""The evaluator of retrieval: texts of an image, and images of a text."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from consilium.core.contracts import Evaluation, Outputs
from consilium.core.errors import ConfigError, DataError
from consilium.evaluation.config import EvaluationConfig
from consilium.evaluation.estimates import Estimates, Share, estimate
from consilium.evaluation.metrics import Floats, Ints, as_weights, defined
from consilium.evaluation.report.words import WORDS
from consilium.evaluation.retrieval import figures as r

DIRECTIONS = ("image_to_text", "text_to_image")
RECALLS = (1, 5, 10)
_FIGURES = (*(f"recall_at_{k}" for k in RECALLS), "median_rank", "mean_average_precision")
_NAMES = ("mean_recall", *(f"{direction}_{figure}" for direction in DIRECTIONS for figure in _FIGURES), "log_loss")
_SHOWN_CASES = 50  # rows of the table `worst` for each direction
_SHOWN_QUERIES, _SHOWN_ANSWERS = 12, 5  # of the tables of neighbours


@dataclass(frozen=True)
class _Cases:
    """The judged cases. Row t of ``texts_MF`` is the text of the cases whose ``text_N`` is t; ``first_M`` is one."""

    images_NF: Floats
    texts_MF: Floats
    text_N: Ints
    first_M: Ints
    scale: float | None
    ids: list[str]
    groups: list[str]
    columns: dict[str, list[str]]


@dataclass(frozen=True)
class _Direction:
    """How each case fares as a query: its rank, average precision and loss, and how many answers are right for it."""

    gallery: int
    right_N: Ints
    rank_N: Ints
    precision_N: Floats
    similarity_N: Floats
    loss_N: Floats | None

    def chance(self, figure: str) -> float:
        """What the figure would be, were the order of the answers random."""
        if figure == "median_rank":
            return r.chance_median_rank(self.right_N, self.gallery)
        if figure == "mean_average_precision":
            return r.chance_average_precision(self.right_N, self.gallery)
        return r.chance_recall(self.right_N, self.gallery, at=int(figure.rpartition("_")[2]))


class RetrievalEvaluator:
    """Judges how well images find their texts among all texts of a set, and texts their images.

    Arrays of the outputs: ``image_embeddings`` and ``text_embeddings`` float [N, F], compared by cosine;
    ``same_text`` int [N] numbers the texts, equal texts alike, and is -1 where a case has none, which is then left out
    and counted in a note; ``scale`` float [N], the same everywhere, is 1 / temperature, and may be missing: there is
    then no ``log_loss``.

    Every case is a query both ways. The image's gallery are the different texts, of which its own is right; the
    text's gallery are the images of all cases, of which all with this text are right. A text that many cases share
    asks as often. Ties count against the model (see ``consilium.evaluation.retrieval.figures``). ``log_loss`` is -log
    of the probability of the right answers, the mean of both ways.
    """

    def __init__(self, *, config: EvaluationConfig) -> None:
        self._config = config

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The names of the figures, in the order of ``quick``."""
        return _NAMES

    def higher_is_better(self, metric: str) -> bool:
        """The direction of a metric."""
        if metric not in _NAMES:
            raise ConfigError(f"'{metric}' is not a metric of this task; its metrics are: {', '.join(_NAMES)}.")
        return WORDS[metric].higher_is_better

    def check_monitor(self, metric: str) -> None:
        """Each of them may choose weights."""

    def quick(self, outputs: Outputs) -> dict[str, float | None]:
        """The plain figures by name."""
        return _figures(_directions(_check(outputs)))

    def evaluate(self, outputs: Outputs, *, split: str) -> Evaluation:
        """Figures, bootstrap intervals over groups (of queries; the galleries stay), and tables.

        Tables: ``retrieval`` (each direction, with what chance would give), ``per_<column>``, ``worst`` (queries whose
        best right answer stands furthest back), ``nearest_texts`` and ``nearest_images`` (the first answers to a few
        queries, spread over groups), ``notes``. A text is named by the id of the first case that has it.
        """
        cases = _check(outputs)
        directions = _directions(cases)
        found = self._estimates(directions, cases.groups)
        notes: list[str] = []
        if (left_out := len(outputs.ids) - len(cases.ids)) > 0:
            notes.append(f"{left_out} of {len(outputs.ids)} cases have no text and are left out.")
        tables = {
            "retrieval": [_summary(name, direction, found) for name, direction in directions.items()],
            **self._per_column(cases, directions, notes),
            "worst": [row for name, direction in directions.items() for row in _worst(cases, name, direction)],
            "nearest_texts": _neighbours(cases, "image_to_text"),
            "nearest_images": _neighbours(cases, "text_to_image"),
            "notes": [{"note": note} for note in notes],
        }
        return Evaluation(
            split=split,
            cases=len(cases.ids),
            groups=len(set(cases.groups)),
            metrics=_figures(directions),
            intervals={name: found.interval(name) for name in found.values},
            draws=found.draws,
            tables={name: rows for name, rows in tables.items() if rows},
        )

    def _estimates(self, directions: dict[str, _Direction], groups: list[str]) -> Estimates:
        ranks = {name: direction.rank_N for name, direction in directions.items()}
        medians = {
            f"{name}_median_rank": lambda weights, rank_N=rank_N: r.median_rank(rank_N, weights)
            for name, rank_N in ranks.items()
        }
        loss_N = _loss(directions)
        extra = medians if loss_N is None else {**medians, "log_loss": lambda weights: _mean(loss_N, weights)}
        return estimate(_shares(directions), groups, config=self._config, extra=extra)

    def _per_column(
        self, cases: _Cases, directions: dict[str, _Direction], notes: list[str]
    ) -> dict[str, list[dict[str, Any]]]:
        """The shares of the queries with each value of a column; their galleries are those of the whole set."""
        tables: dict[str, list[dict[str, Any]]] = {}
        shares = _shares(directions)
        for column in self._config.columns:
            if column not in cases.columns:
                notes.append(f"There is no column '{column}'; the columns are: {', '.join(sorted(cases.columns))}.")
                continue
            values = np.array(cases.columns[column])
            sizes = Counter(values.tolist())
            if len(sizes) > self._config.max_column_values:
                notes.append(
                    f"Column '{column}' has {len(sizes)} values and is left out; evaluation.max_column_values is "
                    f"{self._config.max_column_values}."
                )
                continue
            rows = tables[f"per_{column}"] = []
            for value, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
                among_N = values == value
                groups = [cases.groups[n] for n in np.flatnonzero(among_N)]
                part = {name: share.among(among_N) for name, share in shares.items()}
                found = estimate(part, groups, config=self._config)
                row: dict[str, Any] = {column: value, "n": size, "groups": len(set(groups))}
                for name in shares:
                    row.update(found.cells(name, name))
                rows.append(row)
        return tables


# -- Reading the outputs ------------------------------------------------------------------------------------------


def _check(outputs: Outputs) -> _Cases:
    """The cases with a text; outputs that do not fit, or are no finite numbers, are a DataError."""
    count = len(outputs.ids)
    images, texts = (np.asarray(outputs.arrays[f"{side}_embeddings"]) for side in ("image", "text"))
    same = np.asarray(outputs.arrays["same_text"])
    if images.ndim != 2 or images.shape != texts.shape or len(images) != count or same.shape != (count,):
        raise DataError(
            f"image_embeddings {images.shape}, text_embeddings {texts.shape} and same_text {same.shape} do not fit "
            f"{count} cases; expected [N, F] twice and [N]."
        )
    rows = np.flatnonzero(same >= 0)
    if not len(rows):
        raise DataError(f"none of {count} cases has a text; retrieval needs cases with an image and a text.")
    for name, array in (("image", images), ("text", texts)):
        broken = rows[~np.isfinite(array[rows]).all(axis=1)]
        if len(broken):
            raise DataError(
                f"the {name} embeddings of {len(broken)} of {count} cases are not finite numbers (the first: "
                f"{outputs.ids[broken[0]]}); the model's weights are damaged or have diverged."
            )
    _, first_M, text_N = np.unique(same[rows], return_index=True, return_inverse=True)
    scale = outputs.arrays.get("scale")
    return _Cases(
        images_NF=r.unit(images[rows]),
        texts_MF=r.unit(texts[rows][first_M]),
        text_N=text_N,
        first_M=first_M,
        scale=None if scale is None else float(scale[rows[0]]),
        ids=[outputs.ids[row] for row in rows],
        groups=[outputs.groups[row] for row in rows],
        columns={name: [values[row] for row in rows] for name, values in outputs.columns.items()},
    )


def _directions(cases: _Cases) -> dict[str, _Direction]:
    texts_NF, places_M = cases.texts_MF[cases.text_N], np.arange(len(cases.texts_MF))
    numbers: dict[str, Any] = {"same_N": cases.text_N, "scale": cases.scale}
    by_image = r.compare(cases.images_NF, texts_NF, cases.texts_MF, same_M=places_M, **numbers)
    by_text = r.compare(texts_NF, cases.images_NF, cases.images_NF, same_M=cases.text_N, **numbers)
    pair_N = np.arange(len(cases.ids))  # an image is a query of its own, a text one with all cases that have it
    return {
        "image_to_text": _direction(by_image, pair_N, gallery=len(places_M)),
        "text_to_image": _direction(by_text, cases.text_N, gallery=len(cases.ids)),
    }


def _direction(found: r.Comparison, query_N: Ints, *, gallery: int) -> _Direction:
    return _Direction(
        gallery=gallery,
        right_N=np.bincount(query_N)[query_N],
        rank_N=r.best_ranks(found.wrong_before_N, query_N),
        precision_N=r.average_precisions(found.wrong_before_N, query_N),
        similarity_N=found.similarity_N,
        loss_N=None if found.log_probability_N is None else -found.log_probability_N,
    )


# -- Figures ------------------------------------------------------------------------------------------------------


def _shares(directions: dict[str, _Direction]) -> dict[str, Share]:
    """The figures that are means over queries of numbers from 0 to 1."""
    parts: dict[str, Floats] = {}
    for name, direction in directions.items():
        parts |= {f"{name}_recall_at_{k}": (direction.rank_N <= k).astype(float) for k in RECALLS}
    parts = {"mean_recall": np.mean(list(parts.values()), axis=0), **parts}
    for name, direction in directions.items():
        parts[f"{name}_mean_average_precision"] = direction.precision_N
    return {name: Share(part, np.ones(len(part))) for name, part in parts.items()}


def _figures(directions: dict[str, _Direction]) -> dict[str, float | None]:
    values = {name: share.value() for name, share in _shares(directions).items()}
    for name, direction in directions.items():
        values[f"{name}_median_rank"] = r.median_rank(direction.rank_N)
    loss_N = _loss(directions)
    if loss_N is not None:
        values["log_loss"] = _mean(loss_N, None)
    return {name: defined(values[name]) if name in values else None for name in _NAMES}


def _loss(directions: dict[str, _Direction]) -> Floats | None:
    losses = [direction.loss_N for direction in directions.values() if direction.loss_N is not None]
    return np.asarray(np.mean(losses, axis=0)) if losses else None


def _mean(values_N: Floats, weights: Floats | None) -> Floats:
    weights = as_weights(weights, len(values_N))
    return np.asarray(weights @ values_N / weights.sum(axis=-1))


# -- Tables -------------------------------------------------------------------------------------------------------


def _summary(name: str, direction: _Direction, found: Estimates) -> dict[str, Any]:
    row: dict[str, Any] = {"direction": name, "queries": len(direction.rank_N), "gallery": direction.gallery}
    for figure in _FIGURES:
        row.update(found.cells(f"{name}_{figure}", figure))
        row[f"{figure}_chance"] = direction.chance(figure)
    return row


def _worst(cases: _Cases, name: str, direction: _Direction) -> list[dict[str, Any]]:
    """The queries whose best right answer stands furthest back, with what stands first instead."""
    order = np.argsort(-direction.rank_N, kind="stable")[:_SHOWN_CASES]
    queries = order[direction.rank_N[order] > 1]
    rows_Q1, similarity_Q1 = _answers(cases, name, queries, count=1)
    return [
        {
            "direction": name,
            "id": cases.ids[query],
            "rank": int(direction.rank_N[query]),
            "similarity": float(direction.similarity_N[query]),
            "first": cases.ids[first],
            "first_similarity": float(similarity),
        }
        for query, first, similarity in zip(queries, rows_Q1[:, 0], similarity_Q1[:, 0], strict=True)
    ]


def _neighbours(cases: _Cases, name: str) -> list[dict[str, Any]]:
    """The first answers to a few queries."""
    queries = _spread(cases.groups)
    rows_QK, similarity_QK = _answers(cases, name, queries, count=_SHOWN_ANSWERS)
    return [
        {
            "query": cases.ids[query],
            "rank": k + 1,
            "id": cases.ids[row],
            "similarity": float(similarity_QK[q, k]),
            "right": bool(cases.text_N[query] == cases.text_N[row]),
        }
        for q, query in enumerate(queries)
        for k, row in enumerate(rows_QK[q])
    ]


def _answers(cases: _Cases, name: str, queries: Ints, *, count: int) -> tuple[Ints, Floats]:
    """The cases of the first answers to these queries, and their similarities."""
    if name == "text_to_image":
        return r.nearest(cases.texts_MF[cases.text_N[queries]], cases.images_NF, count=count)
    texts_QK, similarity_QK = r.nearest(cases.images_NF[queries], cases.texts_MF, count=count)
    return cases.first_M[texts_QK], similarity_QK


def _spread(groups: list[str]) -> Ints:
    """A few cases: the first one of groups at equal distances in the order of their names."""
    _, first_G = np.unique(np.asarray(groups), return_index=True)
    places = np.linspace(0, len(first_G) - 1, min(_SHOWN_QUERIES, len(first_G))).round().astype(int)
    return np.asarray(first_G[places])
