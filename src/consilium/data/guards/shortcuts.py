"""What tells the label without showing the disease: the source, the size, borders and colours of images, metadata.

Axes in names: N cases, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from consilium.data.case import SOURCE_COLUMNS, looks_missing
from consilium.data.guards.digests import Digests
from consilium.data.store.meta import number_of
from consilium.data.store.splits import position
from consilium.data.store.store import CaseTable

LEAST_SKILL = 0.3
LEAST_GROUPS = 10
MOST_CASES = 20_000
COMMON_SIZES = 16
RIDGE = 0.01
BINS = 16  # of a column of numbers
HALVES = 1  # the seed of the halves; splits use others
CONFIDENCE = 2.6  # deviations: about 99.5 % on one side
ADVICE = {
    "image sizes": "a model can learn the format of the files instead of the content; bring all images to one size and "
    "shape at their source, or collect every label in every format.",
    "borders": "a model can learn margins and frames instead of the content; crop them away.",
    "colours and brightness": "right where colour is what is looked for (stains, kinds of image); elsewhere a model "
    "can learn the camera instead of the content: look at colour augmentation and grayscale_prob.",
}


@dataclass(frozen=True)
class _Cases:
    """Labelled training cases [N]: row of the table, class (int64), group (int64), and which half their group is in."""

    rows: np.ndarray
    classes: np.ndarray
    groups: np.ndarray
    second_half: np.ndarray

    def part(self, chosen: np.ndarray) -> _Cases:
        """Some of the cases."""
        return _Cases(self.rows[chosen], self.classes[chosen], self.groups[chosen], self.second_half[chosen])


@dataclass(frozen=True)
class _Score:
    """A balanced accuracy and what it is at least, with confidence; ``skill`` is 0 at chance and 1 at best."""

    accuracy: float
    at_least: float
    classes: int

    @property
    def skill(self) -> float:
        return self.skill_of(1.0)

    def skill_of(self, best: float) -> float:
        """The same where the most that can be reached is ``best``; 0 where that is chance."""
        chance = 1 / self.classes
        return (self.at_least - chance) / (best - chance) if best > chance else 0.0

    def __str__(self) -> str:
        return f"{self.accuracy:.2f} balanced accuracy over {self.classes} classes (chance {1 / self.classes:.2f})"


def shortcut_warnings(table: CaseTable, digests: Digests) -> list[str]:
    """Warnings where the source of a training case, or the plain look of its first image, tells its label.

    ``digests`` are those of the whole store. For size, borders and colours each a linear discriminant (Fisher, "The
    use of multiple measurements in taxonomic problems", 1936; equal priors, standardised features) is fitted on half
    of the training groups and judged on the other half, and the other way round; so is the likeliest label of each
    source. What is told is the balanced accuracy; a warning needs ``LEAST_SKILL`` of the way from chance to 1 even at
    the lower end of its confidence interval, in which groups count, not cases. Labels of fewer than ``LEAST_GROUPS``
    groups are left out, of more than ``MOST_CASES`` cases an even part is taken. Several labels of a case count as
    one. Nothing to say is an empty list.
    """
    cases = _cases(table)
    warnings = _source_warnings(table, cases)
    found = []
    own = digests.of(table)
    first_view = np.searchsorted(own.rows, cases.rows).clip(max=len(own.rows) - 1)
    seen = own.readable[first_view] & (own.rows[first_view] == cases.rows) if len(own.rows) else np.zeros(0, int)
    for name, features_NF in _features(own.statistics[first_view[seen]], own.names).items():
        score = _judged(cases.part(seen), features_NF, _linear_discriminant)
        if score is not None and score.skill >= LEAST_SKILL:
            found.append((score.skill, f"{name} alone reach {score}: {ADVICE[name]}"))
    return warnings + [message for _, message in sorted(found, reverse=True)]


def metadata_warnings(table: CaseTable, columns: Sequence[str]) -> list[str]:
    """A warning where metadata columns that a model reads tell the label of a training case, each by itself.

    It is measured as ``shortcut_warnings`` measures sources: by the likeliest label of each value. Of a column with
    more than ``BINS`` different numbers the values are as many bins of equally many cases; a missing value is one more.
    Fewer values than labels cannot name all of these: the skill is then of what so many values could reach.
    """
    cases, found = _cases(table), table.columns()
    told = []
    for name in columns:
        values = _binned([found[name][row] for row in cases.rows.tolist()]) if name in found else np.zeros(0, int)
        score = _judged(cases, np.eye(values.max(initial=0) + 1)[values], _likeliest) if len(values) else None
        if score is None:
            continue
        count = len(np.unique(values))
        best = min(count / score.classes, 1.0)
        if (skill := score.skill_of(best)) >= LEAST_SKILL:
            most = f", of {best:.2f} that {count} values could reach" if best < 1 else ""
            told.append((skill, f"{name} reaches {score}{most}"))
    if not told:
        return []
    named = "; ".join(text for _, text in sorted(told, reverse=True))
    return [
        f"of the metadata that the model reads, by itself {named}: it can answer by that and look at nothing else. "
        "Take a column out of task.metadata.columns if it is written down after the diagnosis, or because of it."
    ]


def _binned(texts: Sequence[str]) -> np.ndarray:
    """A number for the value of each case, int64 [N]; close numbers have one together."""
    numbers = [number_of(text) for text in texts if text and not looks_missing(text)]
    if len(set(numbers)) <= BINS or None in numbers:
        return np.unique(np.array(texts, dtype=object), return_inverse=True)[1]
    edges = np.quantile(np.array(numbers, dtype=np.float64), np.linspace(0, 1, BINS + 1)[1:-1])
    values_N = np.array([np.nan if (number := number_of(text)) is None else number for text in texts])
    return np.where(np.isnan(values_N), BINS, np.searchsorted(edges, values_N))


def _cases(table: CaseTable) -> _Cases:
    """The training cases with a true label that enough groups have."""
    chosen = [
        row for row in table.rows("train").tolist() if table.labels[row] and table.is_gt[row]
    ]  # fmt: skip
    names, classes = np.unique([" ".join(table.labels[row]) for row in chosen], return_inverse=True)
    groups = np.unique([table.groups[row] for row in chosen], return_inverse=True)[1]
    pairs_2M = np.unique(np.stack([classes, groups]), axis=1)
    usual = np.bincount(pairs_2M[0], minlength=len(names)) >= LEAST_GROUPS
    kept = np.flatnonzero(usual[classes])
    if len(kept) > MOST_CASES:
        kept = kept[np.arange(MOST_CASES) * len(kept) // MOST_CASES]
    rows = np.array(chosen, dtype=np.int64)[kept]
    second_half = np.array([position(table.groups[row], seed=HALVES) >= 0.5 for row in rows.tolist()], dtype=bool)
    return _Cases(rows, np.unique(classes[kept], return_inverse=True)[1], groups[kept], second_half)


def _source_warnings(table: CaseTable, cases: _Cases) -> list[str]:
    """A warning for each column of sources that tells the label."""
    warnings = []
    for name, values in table.columns().items():
        if name not in SOURCE_COLUMNS:
            continue
        sources = np.unique([values[row] for row in cases.rows.tolist()], return_inverse=True)[1]
        score = _judged(cases, np.eye(sources.max(initial=0) + 1)[sources], _likeliest)
        if score is None or score.skill < LEAST_SKILL:
            continue
        pairs_2M = np.unique(np.stack([sources, cases.classes]), axis=1)
        single = (np.bincount(pairs_2M[0]) == 1)[sources].mean()
        warnings.append(
            f"the column {name} alone reaches {score}, and {single:.0%} of the training cases are from a {name} of a "
            f"single label: a model can learn what a {name} looks like instead of the content. Judge it on a {name} "
            f"it never saw: `consilium crossval --leave-out {name}`."
        )
    return warnings


def _features(statistics_NF: np.ndarray, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The features of each kind that a probe sees."""
    width_N, height_N = statistics_NF[:, 0], statistics_NF[:, 1]
    sizes, which = np.unique(statistics_NF[:, :2], axis=0, return_inverse=True)
    common = np.argsort(-np.bincount(which, minlength=len(sizes)), kind="stable")[:COMMON_SIZES]
    shape_NF = np.log(np.stack([width_N, height_N, width_N / height_N], axis=1))
    is_border = np.array([any(word in name for word in ("border", "margin")) for name in names])
    return {
        "image sizes": np.concatenate([shape_NF, which[:, None] == common], axis=1),
        "borders": statistics_NF[:, is_border],
        "colours and brightness": statistics_NF[:, 2:][:, ~is_border[2:]],
    }


Probe = Callable[[np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]


def _judged(cases: _Cases, features_NF: np.ndarray, probe: Probe) -> _Score | None:
    """How well a probe fitted on one half tells the labels of the other, both ways; None with a single label."""
    count = int(cases.classes.max(initial=-1)) + 1
    if count < 2:
        return None
    right = np.zeros(len(cases.classes), dtype=bool)
    for judged in (cases.second_half, ~cases.second_half):
        if judged.any() and not judged.all():
            told = probe(features_NF[~judged], cases.classes[~judged], features_NF[judged], count)
            right[judged] = told == cases.classes[judged]
    pairs_2M = np.unique(np.stack([cases.classes, cases.groups]), axis=1)
    groups_K = np.bincount(pairs_2M[0], minlength=count)
    shares_K = np.bincount(cases.classes, weights=right, minlength=count) / np.bincount(cases.classes, minlength=count)
    # One more right and one more wrong (Agresti and Coull): ten of ten are not yet certainty.
    careful_K = (shares_K * groups_K + 1) / (groups_K + 2)
    deviation = float(np.sqrt((careful_K * (1 - careful_K) / (groups_K + 2)).sum())) / count
    return _Score(float(shares_K.mean()), float(careful_K.mean()) - CONFIDENCE * deviation, count)


def _linear_discriminant(fitted_NF: np.ndarray, classes: np.ndarray, judged_NF: np.ndarray, count: int) -> np.ndarray:
    """The class of each judged case by a linear discriminant with equal priors."""
    centre_F, spread_F = fitted_NF.mean(0), fitted_NF.std(0)
    used = spread_F > 1e-6
    fitted_NF, judged_NF = ((part[:, used] - centre_F[used]) / spread_F[used] for part in (fitted_NF, judged_NF))
    cases_K = np.bincount(classes, minlength=count)
    means_KF = np.zeros((count, fitted_NF.shape[1]))
    np.add.at(means_KF, classes, fitted_NF)
    means_KF /= np.maximum(cases_K, 1)[:, None]
    within_NF = fitted_NF - means_KF[classes]
    covariance_FF = within_NF.T @ within_NF / len(classes) + RIDGE * np.eye(fitted_NF.shape[1])
    weights_FK = np.linalg.solve(covariance_FF, means_KF.T)
    scores_NK = judged_NF @ weights_FK - (means_KF * weights_FK.T).sum(1) / 2
    best_N: np.ndarray = np.where(cases_K > 0, scores_NK, -np.inf).argmax(1)
    return best_N


def _likeliest(fitted_NF: np.ndarray, classes: np.ndarray, judged_NF: np.ndarray, count: int) -> np.ndarray:
    """The class that makes each judged case's source likeliest; -1 for a source that was not fitted."""
    cases_FK = np.stack([fitted_NF[classes == number].sum(0) for number in range(count)], axis=1)
    shares_NK = judged_NF @ (cases_FK / np.maximum(cases_FK.sum(0), 1))
    return np.where(shares_NK.any(1), shares_NK.argmax(1), -1)
