"""The align task: images and texts into embeddings of one space.

Axes in names: B case in a batch, N image, V view, T token, F feature, D number of an embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from consilium.core.contracts import (
    Batch,
    Look,
    ParameterGroup,
    Prediction,
    StepOutput,
    Texts,
)
from consilium.core.errors import ConfigError
from consilium.core.reporter import format_table, some
from consilium.core.task import at_the_end
from consilium.losses.contrastive import ContrastiveLoss, build_contrastive
from consilium.losses.distillation import FeatureDistillation
from consilium.losses.sparsity import flops_penalty
from consilium.models.checkpoints.layout import ProjectionLayout
from consilium.models.chunked import in_chunks, largest_chunk
from consilium.models.projection import Projection
from consilium.models.text import TextTower
from consilium.models.tokenizer import Tokenizer
from consilium.models.vision import VisionTower, mean_of_views
from consilium.models.weights import batch_statistics
from consilium.tasks.align.config import AlignConfig
from consilium.tasks.two_towers import TwoTowers

SIDES = ("image", "text")


class Align(TwoTowers):
    """Two towers and a projection for each; several views of a case are averaged as features.

    ``spaces`` begin the names of the embeddings in an answer: one space, which has no name.
    """

    config: AlignConfig
    text: TextTower
    tokenizer: Tokenizer
    spaces: tuple[str, ...] = ("",)

    def __init__(
        self,
        config: AlignConfig,
        *,
        vision: VisionTower,
        text: TextTower,
        projections: Mapping[str, Projection],
        tokenizer: Tokenizer,
    ) -> None:
        """``projections`` by side: ``image`` and ``text``."""
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.vision, self.text = vision, text
        self.licenses = tuple(dict.fromkeys((*vision.licenses, *text.licenses)))
        self.image_projection, self.text_projection = (projections[side] for side in SIDES)
        self.projections: dict[str, ProjectionLayout] | None = None  # where a whole pretrained model has its own
        self.begun: list[dict[str, Any]] = []  # which parts began with weights of which file, where that is told
        self.loss = build_contrastive(config.loss)
        self.chunk = None if config.chunk == "auto" else config.chunk
        if config.chunk is not None:
            self._refuse_batch_statistics()
        distilled = config.feature_distillation
        self.distillation = None if distilled is None else FeatureDistillation(distilled)
        self.teacher: Mapping[str, nn.Module] = {}  # the towers of another expert that teach, by side
        self._start: dict[str, nn.Module] = {}  # no parts of the task: neither saved with it nor trained
        self.set_epoch(0)

    @property
    def losses(self) -> list[ContrastiveLoss]:
        """The loss of each of the spaces."""
        return [self.loss]

    def view_features(self, batch: Batch, tower: nn.Module | None = None) -> Tensor:
        """Features [N, F] of all views there are, case by case: those that the batch brings, or the tower's."""
        images, encode = batch.views, tower or self.vision
        if images.features_BVF is not None:
            return images.features_BVF[images.there_BV]
        places_N2 = images.there_BV.nonzero()
        return in_chunks(lambda own: encode(images.pixels[own[:, 0], own[:, 1]]), places_N2, size=self.chunk)

    def image_features(self, batch: Batch, tower: nn.Module | None = None) -> Tensor:
        """Features [B, F] of cases, the mean over their views; of a case without an image, zeros."""
        return mean_of_views(self.view_features(batch, tower), batch.views.there_BV)

    def text_features(self, texts: Texts, tower: nn.Module | None = None) -> Tensor:
        """Features [B, F]: those that the batch brings, or the tower's."""
        model = tower or self.text
        if texts.features_BF is not None:
            return texts.features_BF
        if texts.tokens_BT is None or texts.attention_BT is None:
            raise ValueError("this batch has neither tokens nor features of its texts")
        tokens_BT, attention_BT = texts.tokens_BT, texts.attention_BT
        if self.chunk is None:
            features_BF: Tensor = model(tokens_BT, attention_BT)
            return features_BF

        def encode(own: Tensor) -> Tensor:
            kept_T = attention_BT[own].any(0) | self.text.reads_padding
            features_BF: Tensor = model(tokens_BT[own][:, kept_T], attention_BT[own][:, kept_T])
            return features_BF

        # Texts of like length stand together: a chunk is padded to the longest of its own, not of the batch.
        order_B = attention_BT.sum(1).argsort(stable=True)
        return in_chunks(encode, order_B, size=self.chunk)[order_B.argsort()]

    def embed_images(self, batch: Batch, features_BF: Tensor) -> Tensor:
        """Embeddings [B, D] of length 1; of a case without an image, zeros."""
        return _where(batch.views.there_BV.any(1), self.image_projection(features_BF))

    def embed_texts(self, batch: Batch, features_BF: Tensor) -> Tensor:
        """Embeddings [B, D] of length 1; of a case without a text, zeros."""
        return _where(_texts(batch).there_B, self.text_projection(features_BF))

    def step(self, batch: Batch) -> StepOutput:
        """The contrastive loss of this process's pairs among those of all processes, and the distance to the start."""
        if self.config.chunk == "auto" and self.chunk is None:
            self._find_chunk(batch)
        views_NF, texts_BF = self.view_features(batch), self.text_features(_texts(batch))
        loss, parts = self.contrast(batch, views_NF, texts_BF)
        further: list[tuple[str, float, Tensor]] = []  # name, weight and value of what is added to the loss
        if flops := self.config.text.flops:
            further.append(("flops", flops, flops_penalty(texts_BF, repeated=batch.share == 0)))
        if self.distillation is not None and self.config.feature_distillation is not None:
            images_BF = mean_of_views(views_NF, batch.views.there_BV)
            distance = self._distance(batch, {"image": images_BF, "text": texts_BF})
            further.append(("feature_distillation", self.config.feature_distillation.weight, distance))
        if further:
            parts["contrastive"] = loss.detach()
        for name, weight, value in further:
            parts[name] = value.detach()
            loss = loss + weight * value
        return StepOutput(loss, parts)

    def contrast(self, batch: Batch, views_NF: Tensor, texts_BF: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The contrastive loss, and what to tell of it."""
        images_BF = mean_of_views(views_NF, batch.views.there_BV)
        embeddings = self.embed_images(batch, images_BF), self.embed_texts(batch, texts_BF)
        same_B, own_BK = self.same(batch)
        loss = self.loss(*embeddings, same_B=same_B, own_BK=own_BK, repeated=batch.share == 0)
        return loss, {"temperature": 1 / self.loss.scale.detach()}

    def same(self, batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        """The numbers of right answers that the loss takes [B] and [B, K]; None where each case has its own alone."""
        if self.config.loss.positives == "same_text" and batch.texts is not None:
            return batch.texts.same_B, batch.texts.own_BK
        return (batch.targets_B if self.config.loss.positives != "case" else None), None

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        """``image_embeddings`` [B, D] and ``text_embeddings`` [B, K, D] of up to K texts, zeros where there is none;
        [B] whether there is any of each, and the ``scale``: in each of the spaces, whose names they begin with; of
        sparse texts the ``term_weights`` [B, V] of the first.
        """
        captions, width = batch.captions, self.config.embedding_size
        arrays = self.image_arrays(batch)
        there_BK = arrays["scale"].new_zeros(len(batch), 1).bool() if captions is None else captions.there_BK
        for space in self.spaces:
            arrays[f"{space}has_text"] = there_BK.any(1).float()
            arrays[f"{space}text_embeddings"] = arrays["scale"].new_zeros(*there_BK.shape, width)
        if captions is not None and bool(there_BK.any()):
            features_NF = self.text_features(captions.each_text())
            for space, embeddings_ND in zip(self.spaces, self.each_text(features_NF), strict=True):
                arrays[f"{space}text_embeddings"][there_BK] = embeddings_ND.float()
            if self.text.terms is not None:
                arrays["term_weights"] = _of_first(features_NF, there_BK)
        return Prediction(arrays)

    def image_arrays(self, batch: Batch) -> dict[str, Tensor]:
        """What ``predict`` says of the images, and the scale of each space."""
        there_B, scale = batch.views.there_BV.any(1), self.loss.scale.detach()
        embeddings_BD = scale.new_zeros(len(batch), self.config.embedding_size)
        if bool(there_B.any()):
            embeddings_BD = self.embed_images(batch, self.image_features(batch))
        return {"scale": scale.expand(len(batch)), "has_image": there_B.float(), "image_embeddings": embeddings_BD}

    def each_text(self, features_NF: Tensor) -> list[Tensor]:
        """Embeddings [N, D] of texts in each of the spaces."""
        return [self.text_projection(features_NF)]

    def combine(self, looks: Sequence[tuple[Look, Prediction]]) -> Prediction:
        """The mean of the image embeddings, of length 1 again; the text is the same for every look."""
        arrays = dict(looks[0][1].arrays)
        for name in arrays:
            if name.endswith("image_embeddings"):
                mean = torch.stack([seen.arrays[name] for _, seen in looks]).mean(0)
                arrays[name] = functional.normalize(mean, dim=-1)
        return Prediction(arrays)

    @torch.no_grad()
    def probed(self, batch: Batch) -> Mapping[str, Tensor]:
        """Features below the projection, and the embeddings above it."""
        features_BF = self.image_features(batch)
        scale_B = self.loss.scale.detach().expand(len(batch))
        return {"tower": features_BF, "embedding": self.embed_images(batch, features_BF), "scale": scale_B}

    def evidence(self, prediction: Prediction, batch: Batch) -> Mapping[str, Tensor]:
        """The embeddings, the temperature, and which texts are equal."""
        kept = ("image_embeddings", "text_embeddings", "scale")
        arrays = {name: array for name, array in prediction.arrays.items() if name.endswith(kept)}
        return arrays if batch.captions is None else {**arrays, "same_text": batch.captions.same_BK}

    def records(self, prediction: Prediction) -> list[dict[str, Any]]:
        """Per case the embeddings of what it has, and the weights of the terms of its text where the tower has some."""
        arrays = {name: array.cpu() for name, array in prediction.arrays.items()}
        has_terms = "term_weights" in arrays
        for space in self.spaces:
            arrays[f"{space}text_embeddings"] = arrays[f"{space}text_embeddings"][:, 0]  # who asks gives one text
        return [
            {
                f"{space}{side}_embedding": arrays[f"{space}{side}_embeddings"][case].tolist()
                for space in self.spaces
                for side in SIDES
                if arrays[f"{space}has_{side}"][case]
            }
            | (
                {"text_terms": self.named(arrays["term_weights"][case])}
                if has_terms and arrays["has_text"][case]
                else {}
            )
            for case in range(len(arrays["scale"]))
        ]

    def named(self, weights_V: Tensor) -> dict[str, float]:
        """The weights above 0 of a text by the names of their terms, the highest first."""
        weights, terms = weights_V.sort(descending=True, stable=True)
        count, names = int((weights > 0).sum()), self.terms()
        found = zip(terms[:count].tolist(), weights[:count].tolist(), strict=True)
        return {names[term]: weight for term, weight in found if names[term]}

    def terms(self) -> Sequence[str]:
        """The vocabulary of a text tower that weighs terms; '' where the tokenizer does not know one."""
        return () if self.text.terms is None else self._term_names

    @cached_property
    def _term_names(self) -> tuple[str, ...]:
        return tuple(map(self.tokenizer.token, range(self.text.num_features)))

    def vectors(self) -> dict[str, int]:
        """The embeddings of both sides."""
        return {f"{space}{side}_embedding": self.config.embedding_size for space in self.spaces for side in SIDES}

    def about(self) -> str:
        """The width of the space."""
        return f"embeddings of {self.config.embedding_size} numbers"

    def notes(self) -> list[str]:
        """Which weights the parts begin with where views have heads of their own, and what is odd about their files."""
        begun = [format_table(self.begun, title="the task is built with these weights")] if self.begun else []
        return [*begun, *super().notes()]

    def keep_start(self, groups: Sequence[str]) -> str:
        """Keep a copy of the towers that begin with trained weights and learn, or the teacher's of all that learn.

        Where there is none it is a ConfigError.
        """
        if self.distillation is None:
            return ""
        towers: dict[str, nn.Module] = {"image": self.vision, "text": self.text}
        frozen = {"image": self.config.vision.freeze.kind, "text": self.config.text.freeze.kind}
        learns = [side for side in SIDES if frozen[side] != "tower"]
        held = [side for side in learns if side in (self.teacher or groups)]
        if not held:
            raise ConfigError(
                "task.feature_distillation holds on to what pretrained towers gave at the start, but no tower that "
                f"learns ({', '.join(learns) or 'none does'}) begins with trained weights. Set its pretrained weights, "
                "or trainer.init_from, or leave feature_distillation out."
            )
        if self.teacher:
            device = next(self.parameters()).device
            self._start = {side: self.teacher[side].requires_grad_(False).eval().to(device) for side in held}
            return f"task.feature_distillation: the {' and '.join(held)} tower learns from {self.config.teacher}"
        self._start = {side: copy.deepcopy(towers[side]).requires_grad_(False).eval() for side in held}
        size = sum(own.numel() * own.element_size() for tower in self._start.values() for own in tower.parameters())
        return f"task.feature_distillation keeps a copy of the {' and '.join(held)} tower: {size / 2**20:,.0f} MiB"

    def _distance(self, batch: Batch, features: Mapping[str, Tensor]) -> Tensor:
        """How far the towers have come from their start, the mean over those that are held."""
        assert self.distillation is not None
        started = {"image": self.image_features, "text": lambda own, tower: self.text_features(_texts(own), tower)}
        distances = []
        for side, tower in self._start.items():
            with torch.no_grad():
                start_BF = started[side](batch, tower)
            distances.append(self.distillation(features[side], start_BF, repeated=batch.share == 0))
        return torch.stack(distances).mean()

    def found(self) -> dict[str, int]:
        """The chunk that fits into memory, once it is known."""
        return {"task.chunk": self.chunk} if self.config.chunk == "auto" and self.chunk is not None else {}

    def take_found(self, found: Mapping[str, int]) -> None:
        """Go on in the chunks of the run's first start."""
        self.chunk = found.get("task.chunk", self.chunk)

    def _find_chunk(self, batch: Batch) -> None:
        """Take as many images, and texts of the full context, as fit into free memory; of cached features all do."""
        encoders: list[Callable[[int], Tensor]] = []
        if (pixels_BVCHW := batch.views.pixels_BVCHW) is not None:
            image_2CHW = pixels_BVCHW.new_zeros(2, *pixels_BVCHW.shape[2:]).requires_grad_()  # also if it is frozen
            encoders.append(lambda count: self.vision(image_2CHW[:count]))
        if batch.texts is not None and batch.texts.tokens_BT is not None:
            text_2T = batch.texts.tokens_BT[:1, :1].expand(2, self.tokenizer.context_length)
            encoders.append(lambda count: self.text(text_2T[:count], torch.ones_like(text_2T[:count])))
        if encoders:
            learns = [parameter for parameter in self.parameters() if parameter.requires_grad]
            self.chunk = largest_chunk(encoders, learns=learns)

    def _refuse_batch_statistics(self) -> None:
        """A tower whose outputs for a case depend on the rest of the batch is a ConfigError."""
        towers = (("vision", self.vision, self.config.vision.name), ("text", self.text, self.config.text.name))
        with at_the_end(self):
            for key, tower, name in towers:
                if found := batch_statistics(tower):
                    raise ConfigError(
                        f"task.chunk is {self.config.chunk}, but {name} has BatchNorm ({some(found, 3)}), which learns "
                        "from the whole batch at once: in chunks it would be another model. Leave task.chunk out, "
                        f"freeze the tower (task.{key}.freeze.kind: tower), or take one without BatchNorm (vit_b_16, "
                        "convnext_tiny)."
                    )

    def parameter_groups(self) -> list[ParameterGroup]:
        """The towers, the projections, and the temperature."""
        projections = [*self.image_projection.parameters(), *self.text_projection.parameters()]
        return [
            *self.tower_groups(),
            ParameterGroup("projection", projections),
            ParameterGroup("temperature", list(self.loss.parameters())),
        ]


def _texts(batch: Batch) -> Texts:
    if batch.texts is None:
        raise ValueError("this batch has no texts")
    return batch.texts


def _of_first(features_NF: Tensor, there_BK: Tensor) -> Tensor:
    """The features [B, F] of each case's first text; zeros where it has none."""
    first_BF = features_NF.new_zeros(len(there_BK), features_NF.shape[1])
    first_BF[there_BK[:, 0]] = features_NF[there_BK.nonzero()[:, 1] == 0]
    return first_BF


def _where(there_B: Tensor, embeddings_BD: Tensor) -> Tensor:
    return embeddings_BD * there_B[:, None].to(embeddings_BD.dtype)
