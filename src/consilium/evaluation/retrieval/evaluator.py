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
from consilium.evaluation.metrics import Bools, Floats, Ints, as_weights, defined
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
    """The judged cases N, the different texts M, and the pairs P of a case and a text of its own, case by case.

    ``place_P`` is which of its case's texts that is, from 1; ``first_M`` is the first pair of each text.
    """

    images_NF: Floats
    texts_MF: Floats
    case_P: Ints
    text_P: Ints
    place_P: Ints
    first_M: Ints
    scale: float | None
    ids: list[str]
    groups: list[str]
    columns: dict[str, list[str]]

    def mean(self, values_P: Floats | Bools) -> Floats:
        """Of each case the mean over its texts, [N]."""
        return np.asarray(np.bincount(self.case_P, values_P) / np.bincount(self.case_P))

    def weights(self, weights_N: Floats | None) -> Floats:
        """How much each pair counts, [..., P], where the texts of a case count as one."""
        return as_weights(weights_N, len(self.ids))[..., self.case_P] / np.bincount(self.case_P)[self.case_P]

    @property
    def first_N(self) -> Ints:
        """The first pair of each case."""
        return np.unique(self.case_P, return_index=True)[1]


@dataclass(frozen=True)
class _Direction:
    """How the query of each pair fares: its rank, average precision and loss, and how many answers are right for it.

    ``similarity_P`` is that of its most similar right answer. A query that has several pairs has the same in each.
    """

    gallery: int
    right_P: Ints
    rank_P: Ints
    precision_P: Floats
    similarity_P: Floats
    loss_P: Floats | None

    def chance(self, figure: str, weights_P: Floats) -> float:
        """What the figure would be, were the order of the answers random."""
        if figure == "median_rank":
            return r.chance_median_rank(self.right_P, self.gallery, weights_P=weights_P)
        if figure == "mean_average_precision":
            return r.chance_average_precision(self.right_P, self.gallery, weights_P=weights_P)
        at = int(figure.rpartition("_")[2])
        return r.chance_recall(self.right_P, self.gallery, at=at, weights_P=weights_P)


class RetrievalEvaluator:
    """Judges how well images find their texts among all texts of a set, and texts their images.

    Arrays of the outputs: ``image_embeddings`` float [N, F] and ``text_embeddings`` float [N, K, F] of up to K texts
    of a case, compared by cosine; ``same_text`` int [N, K] numbers the texts, equal texts alike, and is -1 where there
    is none. Of one text a case the K may be left out. A case without a text is left out and counted in a note.
    ``scale`` float [N], the same everywhere, is 1 / temperature, and may be missing: there is then no ``log_loss``.

    Every case is a query both ways. The image's gallery are the different texts, of which all of its own are right;
    the gallery of each of its texts are the images of all cases, of which all with this text are right. A text that
    many cases share asks as often, and several texts of a case count together as much as one. Ties count against the
    model (see ``consilium.evaluation.retrieval.figures``). ``log_loss`` is -log of the probability of the right
    answers, the mean of both ways.
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
        cases = _check(outputs)
        return _figures(cases, _directions(cases))

    def evaluate(self, outputs: Outputs, *, split: str) -> Evaluation:
        """Figures, bootstrap intervals over groups (of queries; the galleries stay), and tables.

        Tables: ``retrieval`` (each direction, with what chance would give), ``per_<column>``, ``worst`` (queries whose
        best right answer stands furthest back), ``nearest_texts`` and ``nearest_images`` (the first answers to a few
        queries, spread over groups), ``notes``. A text is named by the id of the first case that has it, and which of
        its texts it is.
        """
        cases = _check(outputs)
        directions = _directions(cases)
        found = self._estimates(cases, directions)
        notes: list[str] = []
        if (left_out := len(outputs.ids) - len(cases.ids)) > 0:
            notes.append(f"{left_out} of {len(outputs.ids)} cases have no text and are left out.")
        tables = {
            "retrieval": [_summary(cases, name, direction, found) for name, direction in directions.items()],
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
            metrics=_figures(cases, directions),
            intervals={name: found.interval(name) for name in found.values},
            draws=found.draws,
            tables={name: rows for name, rows in tables.items() if rows},
        )

    def _estimates(self, cases: _Cases, directions: dict[str, _Direction]) -> Estimates:
        ranks = {name: direction.rank_P for name, direction in directions.items()}
        medians = {
            f"{name}_median_rank": lambda weights, rank_P=rank_P: r.median_rank(rank_P, cases.weights(weights))
            for name, rank_P in ranks.items()
        }
        loss_N = _loss(cases, directions)
        extra = medians if loss_N is None else {**medians, "log_loss": lambda weights: _mean(loss_N, weights)}
        return estimate(_shares(cases, directions), cases.groups, config=self._config, extra=extra)

    def _per_column(
        self, cases: _Cases, directions: dict[str, _Direction], notes: list[str]
    ) -> dict[str, list[dict[str, Any]]]:
        """The shares of the queries with each value of a column; their galleries are those of the whole set."""
        tables: dict[str, list[dict[str, Any]]] = {}
        shares = _shares(cases, directions)
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
    expected = (*same.shape, *images.shape[1:])
    if images.ndim != 2 or same.ndim not in (1, 2) or texts.shape != expected or {len(images), len(same)} != {count}:
        raise DataError(
            f"image_embeddings {images.shape}, text_embeddings {texts.shape} and same_text {same.shape} do not fit "
            f"{count} cases; expected [N, F], [N, K, F] and [N, K]."
        )
    texts_NKF, same_NK = texts.reshape(count, -1, images.shape[1]), same.reshape(count, -1)
    rows = np.flatnonzero((same_NK >= 0).any(axis=1))
    if not len(rows):
        raise DataError(f"none of {count} cases has a text; retrieval needs cases with an image and a text.")
    case_P, place_P = np.nonzero(same_NK[rows] >= 0)
    once = np.unique(np.stack((case_P, same_NK[rows][case_P, place_P])), axis=1, return_index=True)[1]
    case_P, place_P = case_P[np.sort(once)], place_P[np.sort(once)]  # each text of a case once
    texts_PF, same_P = texts_NKF[rows][case_P, place_P], same_NK[rows][case_P, place_P]
    for name, array, row in (("image", images[rows], rows), ("text", texts_PF, rows[case_P])):
        broken = np.unique(row[~np.isfinite(array).all(axis=1)])
        if len(broken):
            raise DataError(
                f"the {name} embeddings of {len(broken)} of {count} cases are not finite numbers (the first: "
                f"{outputs.ids[broken[0]]}); the model's weights are damaged or have diverged."
            )
    _, first_M, text_P = np.unique(same_P, return_index=True, return_inverse=True)
    scale = outputs.arrays.get("scale")
    return _Cases(
        images_NF=r.unit(images[rows]),
        texts_MF=r.unit(texts_PF[first_M]),
        case_P=case_P,
        text_P=text_P,
        place_P=place_P + 1,
        first_M=first_M,
        scale=None if scale is None else float(scale[rows[0]]),
        ids=[outputs.ids[row] for row in rows],
        groups=[outputs.groups[row] for row in rows],
        columns={name: [values[row] for row in rows] for name, values in outputs.columns.items()},
    )


def _directions(cases: _Cases) -> dict[str, _Direction]:
    sides = (cases.images_NF, cases.case_P), (cases.texts_MF, cases.text_P)
    return {
        "image_to_text": _direction(*sides, scale=cases.scale),
        "text_to_image": _direction(*reversed(sides), scale=cases.scale),
    }


def _direction(queries: tuple[Floats, Ints], answers: tuple[Floats, Ints], *, scale: float | None) -> _Direction:
    """``queries`` and ``answers``: their embeddings, and which of them each pair has."""
    (queries_QF, query_P), (gallery_MF, answer_P) = queries, answers
    found = r.compare(queries_QF, gallery_MF, query_P=query_P, answer_P=answer_P, scale=scale)
    best_Q = np.full(len(queries_QF), -np.inf)
    np.maximum.at(best_Q, query_P, found.similarity_P)
    return _Direction(
        gallery=len(gallery_MF),
        right_P=np.bincount(query_P)[query_P],
        rank_P=r.best_ranks(found.wrong_before_P, query_P),
        precision_P=r.average_precisions(found.wrong_before_P, query_P),
        similarity_P=best_Q[query_P],
        loss_P=None if found.log_probability_P is None else -found.log_probability_P,
    )


# -- Figures ------------------------------------------------------------------------------------------------------


def _shares(cases: _Cases, directions: dict[str, _Direction]) -> dict[str, Share]:
    """The figures that are means over cases of numbers from 0 to 1."""
    parts: dict[str, Floats] = {}
    for name, direction in directions.items():
        parts |= {f"{name}_recall_at_{k}": cases.mean(direction.rank_P <= k) for k in RECALLS}
    parts = {"mean_recall": np.mean(list(parts.values()), axis=0), **parts}
    for name, direction in directions.items():
        parts[f"{name}_mean_average_precision"] = cases.mean(direction.precision_P)
    return {name: Share(part, np.ones(len(part))) for name, part in parts.items()}


def _figures(cases: _Cases, directions: dict[str, _Direction]) -> dict[str, float | None]:
    values = {name: share.value() for name, share in _shares(cases, directions).items()}
    for name, direction in directions.items():
        values[f"{name}_median_rank"] = r.median_rank(direction.rank_P, cases.weights(None))
    loss_N = _loss(cases, directions)
    if loss_N is not None:
        values["log_loss"] = _mean(loss_N, None)
    return {name: defined(values[name]) if name in values else None for name in _NAMES}


def _loss(cases: _Cases, directions: dict[str, _Direction]) -> Floats | None:
    losses = [cases.mean(direction.loss_P) for direction in directions.values() if direction.loss_P is not None]
    return np.asarray(np.mean(losses, axis=0)) if losses else None


def _mean(values_N: Floats, weights: Floats | None) -> Floats:
    weights = as_weights(weights, len(values_N))
    return np.asarray(weights @ values_N / weights.sum(axis=-1))


# -- Tables -------------------------------------------------------------------------------------------------------


def _summary(cases: _Cases, name: str, direction: _Direction, found: Estimates) -> dict[str, Any]:
    queries = _queries(cases, name)
    row: dict[str, Any] = {"direction": name, "queries": len(queries), "gallery": direction.gallery}
    for figure in _FIGURES:
        row.update(found.cells(f"{name}_{figure}", figure))
        row[f"{figure}_chance"] = direction.chance(figure, cases.weights(None))
    return row


def _queries(cases: _Cases, name: str) -> Ints:
    """The pairs whose queries are different: of an image one, of the texts of the cases each."""
    return cases.first_N if name == "image_to_text" else np.arange(len(cases.case_P))


def _worst(cases: _Cases, name: str, direction: _Direction) -> list[dict[str, Any]]:
    """The queries whose best right answer stands furthest back, with what stands first instead."""
    queries = _queries(cases, name)
    order = queries[np.argsort(-direction.rank_P[queries], kind="stable")][:_SHOWN_CASES]
    pairs = order[direction.rank_P[order] > 1]
    first_Q1, similarity_Q1 = _answers(cases, name, pairs, count=1)
    by_image = name == "image_to_text"
    return [
        {
            "direction": name,
            "id": cases.ids[cases.case_P[pair]],
            "rank": int(direction.rank_P[pair]),
            "similarity": float(direction.similarity_P[pair]),
            "first": cases.ids[cases.case_P[first]],
            "first_similarity": float(similarity),
            "text": int(cases.place_P[first if by_image else pair]),
        }
        for pair, first, similarity in zip(pairs, first_Q1[:, 0], similarity_Q1[:, 0], strict=True)
    ]


def _neighbours(cases: _Cases, name: str) -> list[dict[str, Any]]:
    """The first answers to a few queries."""
    pairs = cases.first_N[_spread(cases.groups)]
    answers_QK, similarity_QK = _answers(cases, name, pairs, count=_SHOWN_ANSWERS)
    own = set(zip(cases.case_P.tolist(), cases.text_P.tolist(), strict=True))
    found = []
    for q, query in enumerate(pairs):
        for k, answer in enumerate(answers_QK[q]):
            image, text = (query, answer) if name == "image_to_text" else (answer, query)
            found.append(
                {
                    "query": cases.ids[cases.case_P[query]],
                    "rank": k + 1,
                    "id": cases.ids[cases.case_P[answer]],
                    "text": int(cases.place_P[text]),
                    "similarity": float(similarity_QK[q, k]),
                    "right": (int(cases.case_P[image]), int(cases.text_P[text])) in own,
                }
            )
    return found


def _answers(cases: _Cases, name: str, pairs: Ints, *, count: int) -> tuple[Ints, Floats]:
    """The first answers to the queries of these pairs, each by the first pair that has it, and their similarities."""
    if name == "text_to_image":
        rows_QK, similarity_QK = r.nearest(cases.texts_MF[cases.text_P[pairs]], cases.images_NF, count=count)
        return cases.first_N[rows_QK], similarity_QK
    rows_QK, similarity_QK = r.nearest(cases.images_NF[cases.case_P[pairs]], cases.texts_MF, count=count)
    return cases.first_M[rows_QK], similarity_QK


def _spread(groups: list[str]) -> Ints:
    """A few cases: the first one of groups at equal distances in the order of their names."""
    _, first_G = np.unique(np.asarray(groups), return_index=True)
    places = np.linspace(0, len(first_G) - 1, min(_SHOWN_QUERIES, len(first_G))).round().astype(int)
    return np.asarray(first_G[places])
