"""Tables of retrieval: what the report shows beside the figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from consilium.evaluation.estimates import Estimates
from consilium.evaluation.metrics import Floats, Ints
from consilium.evaluation.retrieval import figures as f
from consilium.evaluation.retrieval import ranks as r
from consilium.evaluation.retrieval.cases import FIGURES, Direction, RetrievalCases, Way

_SHOWN_CASES = 50  # rows of the table `worst` for each direction
_SHOWN_QUERIES, _SHOWN_ANSWERS = 12, 5  # of the tables of neighbours
_SHOWN_POINTS = 300  # cases of the map
_UNMATCHED = 200_000  # pairs that are drawn for the distribution of similarities
_BINS = 40
_ROWS = 16_384  # embeddings that are centred at a time


def summary(cases: RetrievalCases, way: Way, found: Estimates) -> dict[str, Any]:
    """The figures of one way, each with what chance would give."""
    queries = queries_of(cases, way.direction)
    row: dict[str, Any] = {
        "direction": way.direction,
        "queries": int(way.there_N[cases.case_P[queries]].sum()),
        "gallery": way.standing.gallery,
    }
    chances = way.chances(cases)
    for figure in FIGURES:
        row.update(found.cells(way.name(figure), figure))
        row[f"{figure}_chance"] = chances[figure]
    return row


def queries_of(cases: RetrievalCases, direction: Direction) -> Ints:
    """The pairs whose queries are different: of an image one, of the texts of the cases each."""
    return cases.first_N if direction == "image_to_text" else np.arange(len(cases.case_P))


def worst(cases: RetrievalCases, way: Way) -> list[dict[str, Any]]:
    """The queries whose best right answer stands furthest back, with what stands first instead."""
    queries, rank_P = queries_of(cases, way.direction), way.standing.rank_Q
    order = queries[np.argsort(-rank_P[queries], kind="stable")][:_SHOWN_CASES]
    pairs = order[rank_P[order] > 1]
    first_Q1, similarity_Q1 = _answers(cases, way.direction, pairs, count=1)
    by_image = way.direction == "image_to_text"
    return [
        {
            "direction": way.direction,
            "id": cases.ids[cases.case_P[pair]],
            "rank": int(rank_P[pair]),
            "similarity": float(way.standing.similarity_Q[pair]),
            "first": cases.ids[cases.case_P[first]],
            "first_similarity": float(similarity),
            "text": int(cases.place_P[first if by_image else pair]),
        }
        for pair, first, similarity in zip(pairs, first_Q1[:, 0], similarity_Q1[:, 0], strict=True)
    ]


def neighbours(cases: RetrievalCases, direction: Direction) -> list[dict[str, Any]]:
    """The first answers to a few queries."""
    pairs = cases.first_N[spread(cases.groups, _SHOWN_QUERIES)]
    answers_QK, similarity_QK = _answers(cases, direction, pairs, count=_SHOWN_ANSWERS)
    own = set(zip(cases.case_P.tolist(), cases.text_P.tolist(), strict=True))

    def labels_of(query: int, answer: int) -> dict[str, str]:
        if not any(cases.labels):
            return {}
        query_label, label = (" + ".join(cases.labels[cases.case_P[pair]]) for pair in (query, answer))
        return {"query_label": query_label, "label": label}

    found = []
    for q, query in enumerate(pairs):
        for k, answer in enumerate(answers_QK[q]):
            image, text = (query, answer) if direction == "image_to_text" else (answer, query)
            found.append(
                {
                    "query": cases.ids[cases.case_P[query]],
                    "rank": k + 1,
                    "id": cases.ids[cases.case_P[answer]],
                    "text": int(cases.place_P[text]),
                    "similarity": float(similarity_QK[q, k]),
                    "right": (int(cases.case_P[image]), int(cases.text_P[text])) in own,
                    **labels_of(query, answer),
                }
            )
    return found


def _answers(cases: RetrievalCases, direction: Direction, pairs: Ints, *, count: int) -> tuple[Ints, Floats]:
    """The first answers to the queries of these pairs, each by the first pair that has it, and their similarities."""
    if direction == "text_to_image":
        rows_QK, similarity_QK = r.nearest(cases.texts_MF[cases.text_P[pairs]], cases.images_NF, count=count)
        return cases.first_N[rows_QK], similarity_QK
    rows_QK, similarity_QK = r.nearest(cases.images_NF[cases.case_P[pairs]], cases.texts_MF, count=count)
    return cases.first_M[rows_QK], similarity_QK


def spread(groups: list[str], count: int) -> Ints:
    """A few cases: the first one of groups at equal distances in the order of their names."""
    _, first_G = np.unique(np.asarray(groups), return_index=True)
    places = np.linspace(0, len(first_G) - 1, min(count, len(first_G))).round().astype(int)
    return np.asarray(first_G[places])


def recall_curve(cases: RetrievalCases, way: Way) -> list[dict[str, Any]]:
    """Recall at growing k up to the whole gallery, with what chance would give."""
    gallery, weights_P = way.standing.gallery, cases.weights(None)
    chance = f.chance_recalls(way.standing.right_Q, gallery, weights_P=weights_P)
    steps = np.unique(np.geomspace(1, gallery, 40).round().astype(int)).tolist()
    return [
        {
            "direction": way.direction,
            "k": k,
            "recall": float(np.average(way.standing.rank_Q <= k, weights=weights_P)),
            "chance": float(chance[k]),
        }
        for k in steps
    ]


def similarity(cases: RetrievalCases, *, seed: int) -> list[dict[str, Any]]:
    """How similar images and texts are, in bins: the share of matched pairs in each, and of unmatched ones.

    Of many unmatched pairs some are drawn.
    """
    images, texts = len(cases.images_NF), len(cases.texts_MF)
    own = cases.case_P * texts + cases.text_P
    if images * texts <= _UNMATCHED:
        drawn = np.arange(images * texts)
    else:
        drawn = np.random.default_rng(seed).integers(images * texts, size=_UNMATCHED)
    others = drawn[~np.isin(drawn, own)]
    if not len(others):
        return []
    matched, unmatched = (
        r.pair_similarities(cases.images_NF, cases.texts_MF, image_P=pairs // texts, text_P=pairs % texts)
        for pairs in (own, others)
    )
    edges = np.histogram_bin_edges(np.concatenate((matched, unmatched)), bins=_BINS)
    shares = [np.histogram(values, edges)[0] / len(values) for values in (matched, unmatched)]
    return [
        {"from": float(low), "to": float(high), "matched": float(right), "unmatched": float(wrong)}
        for low, high, right, wrong in zip(edges[:-1], edges[1:], *shares, strict=True)
    ]


def space(cases: RetrievalCases) -> dict[str, list[dict[str, Any]]]:
    """The embeddings on their first two principal components.

    ``map``: the image and the first text of some cases, one of a group. ``map_axes``: the share of the variance of all
    embeddings that each of the two components has.
    """
    blocks = [
        side_EF[start : start + _ROWS] for side_EF in (cases.images_NF, cases.texts_MF)
        for start in range(0, len(side_EF), _ROWS)
    ]  # fmt: skip
    count = len(cases.images_NF) + len(cases.texts_MF)
    mean_F = np.sum([block_EF.sum(axis=0, dtype=float) for block_EF in blocks], axis=0) / count
    variances_F, axes_FF = np.linalg.eigh(sum((own := block_EF - mean_F).T @ own for block_EF in blocks) / count)
    if len(mean_F) < 2 or len(cases.ids) < 2 or variances_F[-1] <= 1e-9:  # all the same
        return {}
    axes_F2 = axes_FF[:, [-1, -2]]
    axes_F2 = axes_F2 * np.where(axes_F2[np.abs(axes_F2).argmax(axis=0), [0, 1]] < 0, -1, 1)  # else the sign is open
    shown = spread(cases.groups, _SHOWN_POINTS)
    sides = (
        ("image", cases.images_NF[shown]),
        ("text", cases.texts_MF[cases.text_P[cases.first_N[shown]]]),
    )
    sources = cases.columns.get("source", [""] * len(cases.ids))
    points = [
        {
            "id": cases.ids[case],
            "side": side,
            "label": " + ".join(cases.labels[case]),
            "source": sources[case],
            "x": float(x),
            "y": float(y),
        }
        for side, embeddings_SF in sides
        for case, (x, y) in zip(shown.tolist(), ((embeddings_SF - mean_F) @ axes_F2).tolist(), strict=True)
    ]
    shares = variances_F[[-1, -2]] / variances_F.sum()
    return {"map": points, "map_axes": [{"axis": n, "variance": float(own)} for n, own in enumerate(shares, start=1)]}
