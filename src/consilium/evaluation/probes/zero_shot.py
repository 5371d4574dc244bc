"""Zero-shot classification: labels as prompts, and the probability of each for an image.

Radford et al., Learning Transferable Visual Models from Natural Language Supervision, 2021, arXiv:2103.00020
(templates and ensembles of prompts); Tiu et al., Expert-level detection of pathologies from unannotated chest X-ray
images via self-supervised learning, 2022 (a positive against a negative prompt for each of several labels).
Axes in names: N image, K class, P prompt, F number of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from consilium.core.config import nearest
from consilium.core.errors import ConfigError
from consilium.core.reporter import some
from consilium.evaluation.logistic import softmax
from consilium.evaluation.metrics import Floats
from consilium.evaluation.probes.config import PLACE, ZeroShotConfig
from consilium.evaluation.retrieval.ranks import unit


@dataclass(frozen=True)
class Prompts:
    """What an image is compared with for one label: texts that say it, and texts that deny it (() for one label)."""

    label: str
    phrases: tuple[str, ...]
    positive: tuple[str, ...]
    negative: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClassEmbeddings:
    """The unit embedding of each class [K, F], of its negation too where a case has several labels, and the scale."""

    positive_KF: Floats
    negative_KF: Floats | None
    scale: float


def prompts_of(
    labels: Sequence[str], config: ZeroShotConfig, *, words: Mapping[str, str], multi_label: bool
) -> list[Prompts]:
    """The prompts of every label; ``words`` say each where ``config.prompts`` is null.

    A label without a prompt, and a prompt of no label, are a ConfigError.
    """
    for key, given in (("prompts", config.prompts or {}), ("negative_prompts", config.negative_prompts)):
        for name in given:
            if name not in labels:
                raise ConfigError(
                    f"probes.zero_shot.{key} has '{name}', which is no label{nearest(name, list(labels))}"
                )
    if config.prompts is not None and (missing := [label for label in labels if label not in config.prompts]):
        raise ConfigError(
            f"probes.zero_shot.prompts has no phrase for {some(missing, 10)}; give every label of the data one, rename "
            "the labels (data.rename_labels), or keep their cases out (data.filters.labels)."
        )
    found = []
    for label in labels:
        phrases = tuple(config.prompts[label] if config.prompts is not None else [words[label]])
        negative = config.negative_prompts.get(label) or _filled(config.negative_templates, phrases)
        positive = tuple(_filled(config.templates, phrases))
        found.append(Prompts(label, phrases, positive, tuple(negative) if multi_label else ()))
    return found


def _filled(templates: Sequence[str], phrases: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(template.replace(PLACE, phrase) for template in templates for phrase in phrases))


def ensemble(embeddings: Sequence[Floats]) -> Floats:
    """Of each class the mean of the unit embeddings [P, F] of its prompts, made a unit again, [K, F]."""
    return unit(np.stack([unit(own_PF).mean(axis=0) for own_PF in embeddings]))


def probabilities(images_NF: Floats, classes: ClassEmbeddings) -> Floats:
    """The probability of each class for each image, [N, K].

    One label a case: the softmax over classes of cosines times the scale, 1 / temperature, that the model has learned.
    With negative prompts, of each class by itself: the softmax of the positive against the negative one.
    """
    images_NF = unit(images_NF)
    scores_NK = classes.scale * (images_NF @ classes.positive_KF.T).astype(float)
    if classes.negative_KF is not None:
        against_NK = classes.scale * (images_NF @ classes.negative_KF.T).astype(float)
        return np.asarray(0.5 * (1 + np.tanh((scores_NK - against_NK) / 2)))  # the sigmoid, which cannot overflow
    return softmax(scores_NK)
