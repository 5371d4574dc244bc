"""The fuse task: image, text and metadata of a case, each of which may be missing, into its labels.

Axes in names: B case in a batch, N image or text, V view, F feature, M modality, D width of a modality, K class,
S subset of modalities (bit m of its number: modality m is in it).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from consilium.core.contracts import (
    Batch,
    Meta,
    MetaCoder,
    ParameterGroup,
    Prediction,
    StepOutput,
    Texts,
)
from consilium.core.labels import LabelTree
from consilium.data.cases.metadata import MetadataCode
from consilium.models.fusion import build_fusion
from consilium.models.heads import build_head
from consilium.models.metadata import MetadataEncoder
from consilium.models.text import TextTower
from consilium.models.tokenizer import Tokenizer
from consilium.models.vectors import VectorCoder, VectorTower
from consilium.models.vision import VisionTower, mean_of_views
from consilium.tasks.fuse.answers import FuseAnswers
from consilium.tasks.fuse.config import FuseConfig
from consilium.tasks.fuse.masking import WITHHELD, kept, subsets
from consilium.tasks.two_towers import TwoTowers


class Fuse(TwoTowers, FuseAnswers):
    """An encoder and a projection for each modality, and what fuses them; views and texts are averaged as features.

    A prediction also says what the answer would be with every subset of the modalities: ``subset_logits`` and
    ``subset_probabilities`` [B, S, K], and ``there`` [B, M] which the case has.
    """

    config: FuseConfig
    subsets_SM: Tensor

    def __init__(
        self,
        config: FuseConfig,
        *,
        labels: LabelTree,
        vision: VisionTower,
        text: TextTower | VectorTower,
        tokenizer: Tokenizer | VectorCoder,
        metadata: MetadataCode | None,
        loss: nn.Module,
    ) -> None:
        super().__init__(labels, multi_label=config.multi_label, threshold=config.answers.threshold)
        self.config, self.tokenizer, self.vision, self.text, self.loss = config, tokenizer, vision, text, loss
        self.licenses = tuple(dict.fromkeys((*vision.licenses, *text.licenses)))
        classes, width, modalities = len(labels), config.width, len(config.modalities)
        self.image_projection = build_head(config.image_projection, in_features=vision.num_features, classes=width)
        self.text_projection = build_head(config.text_projection, in_features=text.num_features, classes=width)
        self.meta, self.metadata = metadata, None
        if config.metadata is not None and metadata is not None:
            self.metadata = MetadataEncoder(metadata.categories, width=config.metadata.column_width)
            own = self.metadata.num_features
            self.metadata_projection = build_head(config.metadata.projection, in_features=own, classes=width)
        self.fusion = build_fusion(config.fusion, config.head, modalities=modalities, width=width, classes=classes)
        self.alone = nn.ModuleDict({name: nn.Linear(width, classes) for name in config.auxiliary.weights})
        self.register_buffer("subsets_SM", subsets(modalities), persistent=False)
        self.epoch = 0
        self.set_epoch(0)

    def meta_coder(self) -> MetaCoder | None:
        """The code of the columns."""
        return self.meta

    def view_features(self, batch: Batch) -> Tensor:
        """Features [N, F] of all views there are, case by case: those that the batch brings, or the tower's."""
        images = batch.views
        if images.features_BVF is not None:
            return images.features_BVF[images.there_BV]
        if not bool(images.there_BV.any()):
            return self._none(self.vision, self.vision.num_features)
        features_NF: Tensor = self.vision(images.pixels[images.there_BV])
        return features_NF

    def text_features(self, texts: Texts) -> Tensor:
        """Features [N, F] of texts, those that the batch brings, or the tower's."""
        if texts.features_BF is not None:
            return texts.features_BF
        assert texts.tokens_BT is not None
        assert texts.attention_BT is not None
        features_BF: Tensor = self.text(texts.tokens_BT, texts.attention_BT)
        return features_BF

    def said(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What each modality says [B, M, D], and which of them a case has, bool [B, M]."""
        views_BV = batch.views.there_BV
        images_BF = mean_of_views(self.view_features(batch), views_BV)
        texts_BF, texts_B = self._texts_of(batch)
        projected = [self.image_projection(images_BF), self.text_projection(texts_BF)]
        there = [views_BV.any(1), texts_B]
        if self.metadata is not None:
            meta = self._meta_of(batch, columns=len(self.metadata.columns))
            there.append(meta.there_BM.any(1))
            projected.append(self.metadata_projection(self.metadata(meta)))
        there_BM = torch.stack(there, dim=1)
        for name in self.config.masking.left_out:
            there_BM[:, self.config.modalities.index(name)] = False
        vectors_BMD = torch.stack(projected, dim=1).float()
        return functional.normalize(vectors_BMD, dim=2) if self.config.normalize else vectors_BMD, there_BM

    def _meta_of(self, batch: Batch, *, columns: int) -> Meta:
        """The metadata of a batch, where all is missing if it brings none."""
        if batch.meta is not None:
            return batch.meta
        blank_BM = self.temperatures_K.new_zeros(len(batch), columns)
        return Meta(blank_BM.bool(), blank_BM)

    def _texts_of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features [B, F] of the text that is drawn of each case, or the mean of all its texts; and who has any."""
        if batch.texts is not None:
            there_B = batch.texts.there_B
            own, there_BK = batch.texts.each(lambda tensor: tensor[there_B]), there_B[:, None]
        elif batch.captions is not None:
            own, there_BK = batch.captions.each_text(), batch.captions.there_BK
        else:
            there_BK = torch.zeros(len(batch), 1, dtype=torch.bool, device=self.temperatures_K.device)
            own = None
        if own is None or not bool(there_BK.any()):
            features_NF = self._none(self.text, self.text.num_features)
        else:
            features_NF = self.text_features(own)
        return mean_of_views(features_NF, there_BK), there_BK.any(1)

    def _none(self, tower: nn.Module, width: int) -> Tensor:
        """No features [0, F]; in training the tower has a part in them, so that its parameters have a gradient."""
        touched = [parameter.flatten()[:1].sum() * 0.0 for parameter in tower.parameters() if parameter.requires_grad]
        return self.temperatures_K.new_zeros(0, width) + (torch.stack(touched).sum() if touched else 0.0)

    def logits(self, batch: Batch) -> Tensor:
        """Scores [B, K] of all that a case has."""
        return self.fusion(*self.said(batch))  # type: ignore[no-any-return]

    def step(self, batch: Batch) -> StepOutput:
        """The loss of what masking leaves of each case, and of each modality alone where the config asks for it."""
        vectors_BMD, left_BM = self.said(batch)
        if any(shares := self.config.masking.shares(self.config.modalities)):
            left_BM = kept(left_BM, batch.rows_B, chances=shares, stream=WITHHELD)
        if any(chances := self._chances()):
            left_BM = kept(left_BM, batch.draws_B, chances=chances)
        targets_B = batch.targets_B
        assert targets_B is not None
        loss = self.loss(self.fusion(vectors_BMD, left_BM), targets_B)
        parts = {} if torch.compiler.is_compiling() else self._pulls(vectors_BMD)
        if weights := self._auxiliary():
            parts["fused"] = loss.detach()
        for name, weight in weights.items():
            place = self.config.modalities.index(name)
            own_B = left_BM[:, place]
            scores_BK = self.alone[name](vectors_BMD[:, place])
            alone = 0.0 * scores_BK.sum()  # a head has a gradient in every batch
            if bool(own_B.any()):  # its share of the cases makes the mean over processes that of all cases
                alone = alone + self.loss(scores_BK[own_B], targets_B[own_B]) * own_B.float().mean()
            parts[name] = alone.detach()
            loss = loss + weight * alone
        return StepOutput(loss, parts)

    def _pulls(self, vectors_BMD: Tensor) -> dict[str, Tensor]:
        """The share of the gradient's length that reaches what each modality says; known once the gradient is."""
        share_M = vectors_BMD.new_zeros(vectors_BMD.shape[1])

        def took(gradient_BMD: Tensor) -> None:
            length_M = gradient_BMD.norm(dim=(0, 2))
            share_M.copy_(length_M / length_M.sum().clamp(min=1e-12))

        if vectors_BMD.requires_grad:
            vectors_BMD.register_hook(took)  # type: ignore[no-untyped-call]
        return {f"gradient_{name}": share_M[place] for place, name in enumerate(self.config.modalities)}

    def _chances(self) -> list[float]:
        """The chances of this epoch to take each modality away."""
        masking = self.config.masking
        grown = min(1.0, self.epoch / masking.ramp_epochs) if masking.ramp_epochs else 1.0
        return [grown * chance for chance in masking.chances(self.config.modalities)]

    def _auxiliary(self) -> dict[str, float]:
        """The weights of this epoch of each modality's own loss."""
        auxiliary = self.config.auxiliary
        left = max(0.0, 1.0 - self.epoch / auxiliary.fade_epochs) if auxiliary.fade_epochs else 1.0
        return {name: weight * left for name, weight in auxiliary.weights.items()}

    @torch.no_grad()
    def predict(self, batch: Batch) -> Prediction:
        """The answer to all that a case has, and to every subset of the modalities."""
        vectors_BMD, there_BM = self.said(batch)
        logits = [self.fusion(vectors_BMD, own_M.expand_as(there_BM)) for own_M in self.subsets_SM]
        logits_BSK = torch.stack(logits, dim=1).float()
        own_B = (there_BM * 2 ** torch.arange(there_BM.shape[1], device=there_BM.device)).sum(1)
        prediction = self.prediction(logits_BSK[torch.arange(len(batch)), own_B])
        further = {"subset_logits": logits_BSK, "there": there_BM.float()}
        return Prediction({**prediction.arrays, **further, **self.of_subsets(logits_BSK)})

    def parameter_groups(self) -> list[ParameterGroup]:
        """The towers, the projections (with the encoder of metadata), and the fusion with all heads."""
        projections = [*self.image_projection.parameters(), *self.text_projection.parameters()]
        if self.metadata is not None:
            projections += [*self.metadata.parameters(), *self.metadata_projection.parameters()]
        return [
            *self.tower_groups(),
            ParameterGroup("projection", projections),
            ParameterGroup("fusion", [*self.fusion.parameters(), *self.alone.parameters()]),
        ]

    def set_epoch(self, epoch: int) -> None:
        """Freeze what the config says for this epoch, and mask as it says."""
        self.epoch = epoch
        super().set_epoch(epoch)
