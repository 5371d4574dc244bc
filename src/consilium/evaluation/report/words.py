"""How every metric is called in a report, and what it means to someone who does not compute metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Word:
    """``share``: it is shown as a percentage; ``rank``: as a place in an order, which may lie between two."""

    name: str
    meaning: str
    share: bool = False
    rank: bool = False
    higher_is_better: bool = True


WORDS: dict[str, Word] = {
    "accuracy": Word("Accuracy", "share of cases named right", share=True),
    "balanced_accuracy": Word("Balanced accuracy", "share found of each class, averaged over classes", share=True),
    "exact_match": Word("Exact match", "share of cases whose whole set of labels is right", share=True),
    "hamming_loss": Word(
        "Hamming loss", "share of single label decisions that are wrong; 0 is best", higher_is_better=False
    ),
    "macro_f1": Word("Macro F1", "precision and recall in one, averaged over classes; 1 is best"),
    "micro_f1": Word("Micro F1", "precision and recall in one, all decisions pooled; 1 is best"),
    "weighted_f1": Word("Weighted F1", "F1 averaged over classes by their size"),
    "macro_precision": Word("Macro precision", "share right among the cases called a class, averaged over classes"),
    "macro_recall": Word("Macro recall", "share found of each class, averaged over classes"),
    "macro_auroc": Word("Macro AUROC", "how well scores rank a class above the rest; 0.5 is chance, 1 is best"),
    "macro_aupr": Word("Macro AUPR", "area under the precision-recall curve, averaged over classes; 1 is best"),
    "quadratic_kappa": Word("Quadratic kappa", "agreement beyond chance; an error costs its distance squared"),
    "calibration_error": Word(
        "Calibration error", "how far stated confidence is from the share right; 0 is best", higher_is_better=False
    ),
    "log_loss": Word("Log loss", "penalty for confident errors, in nats; 0 is best", higher_is_better=False),
    "brier": Word("Brier score", "squared error of the probabilities; 0 is best", higher_is_better=False),
    "hierarchical_precision": Word("Hierarchical precision", "of the nodes that are answered, the share that is right"),
    "hierarchical_recall": Word("Hierarchical recall", "of the nodes on the true paths, the share that is answered"),
    "hierarchical_f1": Word("Hierarchical F1", "both in one, all levels of the tree pooled; 1 is best"),
    "hierarchical_f1_whole": Word("Hierarchical F1, whole", "the same, had no answer stopped; 1 is best"),
    "coverage": Word("Answered", "share of cases that get an answer, not “unknown”", share=True),
    "answered_accuracy": Word("Right when answered", "share of these whose answer is right", share=True),
    "aurc": Word(
        "Risk over coverage",
        "mean share of wrong answers when only the surest are given; 0 is best",
        higher_is_better=False,
    ),
    "end_to_end": Word("Right expert, right answer", "share of cases; where no expert sits: none asked", share=True),
    "oracle_end_to_end": Word("With the true route", "the same, had the router made no mistake", share=True),
    "router_cost": Word(
        "Cost of the router", "how much the router's mistakes take away", share=True, higher_is_better=False
    ),
    "route_accuracy": Word("Routed right", "share of cases sent to the right expert, or rightly to none", share=True),
    "answers_given": Word("Answers given", "share of cases that an expert answers whole", share=True),
    "right_when_given": Word("Right when given", "share of these answers that are right", share=True),
    "mean_recall": Word("Mean recall", "mean of R@1, R@5 and R@10 in both directions", share=True),
}


def _of_retrieval() -> Iterator[tuple[str, Word]]:
    """Both directions, at each level of what counts as a right answer."""
    levels = (
        ("", "", "its text", "an image of it"),
        ("instance_", ", own pair", "its own text", "its own image"),
        ("label_", ", same label", "a text with its label", "an image with its label"),
    )
    for level, suffix, text, image in levels:
        for way, name, answer in (("image_to_text", "Image to text", text), ("text_to_image", "Text to image", image)):
            for k in (1, 5, 10):
                near = "nearest of all" if k == 1 else f"among the {k} nearest"
                yield (
                    f"{level}{way}_recall_at_{k}",
                    Word(f"{name} R@{k}{suffix}", f"share of queries with {answer} {near}", share=True),
                )
            yield (
                f"{level}{way}_median_rank",
                Word(
                    f"{name}, median rank{suffix}",
                    f"where {answer} stands for half of the queries; 1 is best",
                    rank=True,
                    higher_is_better=False,
                ),
            )
            yield (
                f"{level}{way}_mean_average_precision",
                Word(f"{name}, mAP{suffix}", "mean over queries of the average precision; 1 is best"),
            )


def alone(modality: str) -> str:
    """What the macro F1 of a modality alone is called."""
    return f"macro_f1_{modality}_only"


WORDS |= _of_retrieval()
WORDS |= {
    alone(modality): replace(WORDS["macro_f1"], name=f"Macro F1, {modality} only")
    for modality in ("image", "text", "metadata")
}
_PARTS_OF_TABLES = {
    "precision",
    "recall",
    "specificity",
    "answered",
    "recall_at_1",
    "recall_at_5",
    "recall_at_10",
}  # figures of rows that are shares, too


PROBES = {"zero_shot": "Zero-shot", "knn": "Nearest neighbours", "linear": "Linear probe"}


def word(metric: str) -> Word | None:
    """What is said of a metric, also as the figure of a probe (``knn_accuracy``); None for an unknown one."""
    for probe, name in PROBES.items():
        if (own := WORDS.get(metric.removeprefix(f"{probe}_"))) is not None and metric.startswith(probe):
            return replace(own, name=f"{name}, {own.name[0].lower()}{own.name[1:]}")
    return WORDS.get(metric)


def title(metric: str) -> str:
    """The name of a metric in a report; an unknown one is called as it is."""
    own = word(metric)
    return metric if own is None else own.name


def meaning(metric: str) -> str:
    """What a metric means; '' for an unknown one."""
    own = word(metric)
    return "" if own is None else own.meaning


def higher_is_better(metric: str) -> bool:
    """The direction of a metric; an unknown one is taken to grow."""
    own = word(metric)
    return own is None or own.higher_is_better


def is_rank(metric: str) -> bool:
    """Whether a figure is shown as a place in an order."""
    own = word(metric)
    return own is not None and own.rank


def is_share(metric: str) -> bool:
    """Whether a figure is shown as a percentage."""
    own = word(metric)
    known = own is not None and own.share
    return known or metric in _PARTS_OF_TABLES or metric.startswith("sensitivity_at")
