"""Zero-shot scores as the prior of a head: how similar an image is to the names of each class, by a model's own towers.

Radford et al., Learning Transferable Visual Models from Natural Language Supervision, 2021, arXiv:2103.00020.
Axes in names: B case in a batch, K class (node of the tree), P prompt, F feature, D number of an embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from consilium.core.config import nearest
from consilium.core.errors import ConfigError
from consilium.core.labels import LabelTree
from consilium.data.cases.captions import label_words
from consilium.evaluation.probes.config import ZeroShotConfig
from consilium.evaluation.probes.zero_shot import ensemble, prompts_of
from consilium.models.checkpoints.find import find_model
from consilium.models.checkpoints.layout import ProjectionLayout
from consilium.models.checkpoints.pretrained import linear_layers, text_source
from consilium.models.config import TextConfig, VisionConfig
from consilium.models.projection import Projection
from consilium.models.text import build_text, build_tokenizer
from consilium.tasks.classify.config import NamesConfig


class PriorHead(nn.Module):
    """A linear head, whose scores are added to ``trust_K`` times those of zero-shot; build it with ``with_prior``.

    It keeps the projection of images and one vector for each class; texts and their tower are not needed any more.
    """

    trust_K: Tensor
    vectors_KD: Tensor
    scale: Tensor

    def __init__(
        self, linear: nn.Module, *, projection: Projection, layout: ProjectionLayout, vectors_KD: Tensor, scale: float
    ) -> None:
        super().__init__()
        self.linear, self.projection, self.layout = linear, projection.requires_grad_(False), layout
        self.register_buffer("vectors_KD", vectors_KD)
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("trust_K", torch.zeros(len(vectors_KD)))

    def prior(self, features_BF: Tensor) -> Tensor:
        """The scores of zero-shot [B, K]: cosines over the temperature that the model has learned."""
        scores_BK: Tensor = self.scale * (self.projection(features_BF) @ self.vectors_KD.T)
        return scores_BK

    def forward(self, features_BF: Tensor) -> Tensor:
        """Scores [B, K]."""
        scores_BK: Tensor = self.linear(features_BF) + self.trust_K * self.prior(features_BF)
        return scores_BK


@dataclass(frozen=True)
class _Texts:
    """The embeddings of texts by a model's own text tower."""

    tower: nn.Module
    projection: Projection
    tokenizer: Any

    def embed(self, texts: list[str]) -> np.ndarray:
        """Unit vectors [P, D]."""
        padded = self.tokenizer.pad(self.tokenizer.encode(texts))
        with torch.no_grad():
            found_PD = self.projection(self.tower(padded.tokens_BT, padded.attention_BT))
        return np.asarray(found_PD.double().numpy())


def with_prior(
    linear: nn.Module, names: NamesConfig, vision: VisionConfig, labels: LabelTree, layout: ProjectionLayout | None
) -> PriorHead:
    """A head with the prior of the model that the tower is of.

    With the ``layout`` of a bundle its numbers are still missing, and neither texts nor the model are asked for. A
    model without a text tower, and names of what is no label, are a ConfigError.
    """
    if layout is not None:
        vectors_KD = torch.zeros(len(labels), layout.sizes[-1])
        return PriorHead(
            linear, projection=Projection(linear_layers(layout)), layout=layout, vectors_KD=vectors_KD, scale=1.0
        )
    weights = vision.pretrained if isinstance(vision.pretrained, str) else None
    whole = find_model(vision.name, weights=weights, key="task.vision.name")
    parts, joint = whole.layout, whole.joint()
    projections = {
        side: Projection(linear_layers(own, joint.projections.get(side)))
        for side, own in {"image": parts.image_projection, "text": parts.text_projection}.items()
    }
    source = text_source(whole)
    section = TextConfig(
        kind="open_clip" if vision.kind == "open_clip" else "hf",
        name=vision.name,
        context_length=parts.text.context_length,
    )
    tokenizer = build_tokenizer(section, source=source)
    texts = _Texts(build_text(section, tokenizer=tokenizer, source=source).eval(), projections["text"], tokenizer)
    return PriorHead(
        linear,
        projection=projections["image"],
        layout=parts.image_projection,
        vectors_KD=torch.from_numpy(class_vectors(names, labels, texts)).float(),
        scale=math.exp(joint.log_scale),
    )


def class_vectors(names: NamesConfig, labels: LabelTree, texts: _Texts) -> np.ndarray:
    """A unit vector of each class [K, D]: the mean over its names in all templates.

    A class without names of its own is called by the last part of its path. A node above others, unless it has names,
    has the mean of the leaves below it.
    """
    for name in names.names:
        if name not in labels.names:
            raise ConfigError(f"task.head.zero_shot.names has '{name}', which is no label{nearest(name, labels.names)}")
    words = {label: names.names.get(label, [label_words(label)]) for label in labels.names}
    asked = ZeroShotConfig(templates=names.templates, prompts=words)
    prompts = prompts_of(labels.names, asked, words={}, multi_label=False)
    vectors_KD = ensemble([texts.embed(list(own.positive)) for own in prompts])
    below_KK = labels.ancestry_MM[list(labels.leaf_ids)]
    for node, label in enumerate(labels.names):
        if node not in labels.leaf_ids and label not in names.names:
            leaves = np.array(labels.leaf_ids)[below_KK[:, node]]
            (vectors_KD[node],) = ensemble([vectors_KD[leaves]])
    return vectors_KD
