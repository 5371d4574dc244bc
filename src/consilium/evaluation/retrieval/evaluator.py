"""The evaluator of retrieval: texts of an image, and images of a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from consilium.core.errors import ConfigError
from consilium.core.evaluation import Evaluation, Outputs
from consilium.evaluation.config import EvaluationConfig
from consilium.evaluation.estimates import Estimates, Share, estimate, mean
from consilium.evaluation.metrics import Bools, Floats, Ints, defined
from consilium.evaluation.report.words import WORDS
from consilium.evaluation.retrieval import figures as f
from consilium.evaluation.retrieval import tables as t
from consilium.evaluation.retrieval.cases import (
    DIRECTIONS,
    FIGURES,
    LEVELS,
    RECALLS,
    RetrievalCases,
    Way,
    figure_name,
    read_cases,
    ways,
)
from consilium.evaluation.subgroups import by_size, subgroups

_NAMES = (
    "mean_recall",
    *(figure_name(level, way, figure) for level in LEVELS for way in DIRECTIONS for figure in FIGURES),
    "log_loss",
)


class RetrievalEvaluator:
    """Judges how well images find their texts among all texts of a set, and texts their images.

    Arrays of the outputs: ``image_embeddings`` float [N, F] and ``text_embeddings`` float [N, K, F] of up to K texts
    of a case, compared by cosine; ``same_text`` int [N, K] numbers the texts, equal texts alike, and is -1 where there
    is none. Of one text a case the K may be left out. A case without a text is left out and counted in a note.
    ``scale`` float [N], the same everywhere, is 1 / temperature, and may be missing: there is then no ``log_loss``.

    Every case is a query both ways. The image's gallery are the different texts, of which all of its own are right;
    the gallery of each of its texts are the images of all cases, of which all with this text are right. A text that
    many cases share asks as often, and several texts of a case count together as much as one. Ties count against the
    model (see ``consilium.evaluation.retrieval.ranks``). ``log_loss`` is -log of the probability of the right
    answers, the mean of both ways.

    Figures that begin with ``instance_`` take nothing for right but the case's own text or image; of those that begin
    with ``label_``, every answer with the labels of the query is right, and cases without labels are left out (see
    ``consilium.evaluation.retrieval.cases.ways``). Where no query has a wrong answer (a gallery of one case, of one
    text, of one label), no figure of that level is defined, and a note says so.
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
        cases = read_cases(outputs)
        return _figures(cases, ways(cases))

    def evaluate(self, outputs: Outputs, *, split: str) -> Evaluation:
        """Figures, bootstrap intervals over groups (of queries; the galleries stay), and tables.

        Tables: ``retrieval``, ``retrieval_instance`` and ``retrieval_label`` (each direction, with what chance would
        give), ``per_label`` and ``per_<column>`` (of the queries with a value, in the whole gallery), ``worst``
        (queries whose best right answer stands furthest back), ``nearest_texts`` and ``nearest_images`` (the first
        answers to a few queries, spread over groups), ``recall_curve``, ``similarity`` (shares of right and wrong
        pairs), ``map`` and ``map_axes`` (the embeddings on their first two principal components), ``notes``. A text is
        named by the id of the first case that has it, and which of its texts it is.
        """
        cases = read_cases(outputs)
        found = ways(cases)
        everywhere = np.ones(len(cases.ids), dtype=bool)
        figures = self._estimates(cases, found, everywhere)
        notes = _notes(cases, found, of=len(outputs.ids))
        by_text = [way for way in found if way.level == "text" and way.defined]
        tables = {
            **{
                "retrieval" if level == "text" else f"retrieval_{level}": [
                    t.summary(cases, way, figures) for way in found if way.level == level and way.defined
                ]
                for level in LEVELS
            },
            **dict(self._per_value(cases, found, notes)),
            "worst": [row for way in by_text for row in t.worst(cases, way)],
            "nearest_texts": [row for way in by_text[:1] for row in t.neighbours(cases, way.direction)],
            "nearest_images": [row for way in by_text[1:] for row in t.neighbours(cases, way.direction)],
            "recall_curve": [row for way in by_text for row in t.recall_curve(cases, way)],
            "similarity": t.similarity(cases, seed=self._config.seed),
            **t.space(cases),
            "notes": [{"note": note} for note in notes],
        }
        return Evaluation(
            split=split,
            cases=len(cases.ids),
            groups=len(set(cases.groups)),
            metrics=_figures(cases, found),
            intervals={name: figures.interval(name) for name in figures.values},
            draws=figures.draws,
            tables={name: rows for name, rows in tables.items() if rows},
        )

    def _estimates(self, cases: RetrievalCases, found: list[Way], among_N: Bools) -> Estimates:
        """The figures of some of the cases."""
        groups = [cases.groups[n] for n in np.flatnonzero(among_N)]
        shares = {name: share.among(among_N) for name, share in shares_of(cases, found).items()}
        shares = {name: share for name, share in shares.items() if share.of.any()}
        extra = _medians(cases, found, among_N)
        if (loss_N := _loss(cases, found)) is not None:
            extra["log_loss"] = partial(mean, loss_N[among_N])
        return estimate(shares, groups, config=self._config, extra=extra)

    def _per_value(
        self, cases: RetrievalCases, found: list[Way], notes: list[str]
    ) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """The figures of the queries with each label, and with each value of a column, in the gallery of the whole."""
        labels = Counter(label for own in cases.labels for label in own)
        having = {label: np.array([label in own for own in cases.labels]) for label in labels}
        yield "per_label", [self._of_value(cases, found, "label", label, having[label]) for label in by_size(labels)]
        for column in self._config.columns:
            values = subgroups(cases.columns, column, config=self._config, notes=notes)
            among = {value: np.isin(np.arange(len(cases.ids)), rows_N) for value, rows_N in values.items()}
            if among:
                yield f"per_{column}", [self._of_value(cases, found, column, *own) for own in among.items()]

    def _of_value(
        self, cases: RetrievalCases, found: list[Way], column: str, value: str, among_N: Bools
    ) -> dict[str, Any]:
        figures = self._estimates(cases, found, among_N)
        row: dict[str, Any] = {column: value, "n": int(among_N.sum()), "groups": len(set(figures.groups))}
        for name in figures.values:
            row.update(figures.cells(name, name))
        for way in found:
            for figure, chance in way.chances(cases, among_N).items():
                row[f"{way.name(figure)}_chance"] = chance
        return row


def _notes(cases: RetrievalCases, found: list[Way], *, of: int) -> list[str]:
    """What was left out, and which levels have no figures, and why."""
    count = len(cases.ids)
    notes = [f"{of - count} of {of} cases have no text and are left out."] if of > count else []
    levels = {way.level for way in found if not way.defined}
    if "instance" in levels:
        notes.append("There is one case: nothing is there to choose among, and no figure of retrieval is defined.")
    elif "text" in levels:
        notes.append(
            f"All {count} cases have the same text: every answer is right, and recall, ranks and mAP over different "
            "texts are not defined."
        )
    labelled = int((cases.label_N >= 0).sum())
    if "label" in levels and labelled:
        notes.append(
            f"All {labelled} cases with a label have the same: every answer is right, and the figures of labels are "
            "not defined."
        )
    elif labelled and labelled < count:
        notes.append(f"{count - labelled} of {count} cases have no label; the figures of labels leave them out.")
    return notes


# -- Figures ------------------------------------------------------------------------------------------------------


def shares_of(cases: RetrievalCases, found: list[Way]) -> dict[str, Share]:
    """The figures that are means over cases of numbers from 0 to 1."""
    shares: dict[str, Share] = {}
    for way in found:
        if way.defined:
            own = way.standing
            values = {f"recall_at_{k}": own.rank_Q <= k for k in RECALLS} | {"mean_average_precision": own.precision_Q}
            for figure, value_P in values.items():
                part_N = np.where(way.there_N, cases.mean(value_P), 0)
                shares[way.name(figure)] = Share(part_N, way.there_N.astype(float))
    recalls = [figure_name("text", way, f"recall_at_{k}") for way in DIRECTIONS for k in RECALLS]
    if all(name in shares for name in recalls):
        mean_N = np.mean([shares[name].part for name in recalls], axis=0)
        shares = {"mean_recall": Share(mean_N, np.ones(len(mean_N))), **shares}
    return shares


def _figures(cases: RetrievalCases, found: list[Way]) -> dict[str, float | None]:
    everywhere = np.ones(len(cases.ids), dtype=bool)
    values = {name: share.value() for name, share in shares_of(cases, found).items()}
    values |= {name: median(None) for name, median in _medians(cases, found, everywhere).items()}
    if (loss_N := _loss(cases, found)) is not None:
        values["log_loss"] = mean(loss_N, None)
    return {name: defined(values[name]) if name in values else None for name in _NAMES}


def _medians(cases: RetrievalCases, found: list[Way], among_N: Bools) -> dict[str, Callable[[Floats | None], Floats]]:
    """The median rank of some of the cases, as a function of how much each of these counts."""
    place_N, texts_N = np.cumsum(among_N) - 1, np.bincount(cases.case_P)
    medians: dict[str, Callable[[Floats | None], Floats]] = {}
    for way in found:
        pairs = np.flatnonzero((way.there_N & among_N)[cases.case_P])
        if way.defined and len(pairs):
            own_P = cases.case_P[pairs]
            medians[way.name("median_rank")] = partial(
                _median, way.standing.rank_Q[pairs], place_N[own_P], 1 / texts_N[own_P]
            )
    return medians


def _median(rank_P: Ints, case_P: Ints, share_P: Floats, weights: Floats | None) -> Floats:
    """The median of the ranks of pairs, each of which counts as much as a share of its case; nan where none counts."""
    weights_P = share_P if weights is None else weights[..., case_P] * share_P
    return np.where(weights_P.sum(axis=-1) > 0, f.median_rank(rank_P, weights_P), np.nan)


def _loss(cases: RetrievalCases, found: list[Way]) -> Floats | None:
    by_text = [way.standing for way in found if way.level == "text" and way.defined]
    losses = [cases.mean(own.loss_Q) for own in by_text if own.loss_Q is not None]
    return np.asarray(np.mean(losses, axis=0)) if losses else None
