"""Named views of a case, as the eyes of a patient: a space for each of them, and one for the case.

Axes in names: B case in a batch, N view of the batch, or text, V view, L space, F feature, D number of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from consilium.core.contracts import Batch, ParameterGroup
from consilium.core.errors import ConfigError
from consilium.losses.contrastive import ContrastiveLoss, build_contrastive
from consilium.losses.partial import counts_over_processes, loss_of_those_there
from consilium.models.projection import Projection
from consilium.models.text import TextTower
from consilium.models.tokenizer import Tokenizer
from consilium.models.vision import VisionTower
from consilium.tasks.align.config import AlignConfig
from consilium.tasks.align.task import Align


def text_head(features: int, width: int) -> nn.Sequential:
    """From the features of a text to a space: linear, ReLU, linear, as in RET-CLIP (arXiv:2405.14137)."""
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, width))


class ViewHeads(nn.Module):
    """What views have beside the towers: an image map for each and one for the case, and a text head for each.

    The maps take what the shared image tower and its projection give of a view, [N, D]; that of the case takes all
    views side by side, [B, V * D]. The text head of the case is the task's own.
    """

    def __init__(self, *, views: int, width: int, text_features: int) -> None:
        super().__init__()
        self.case_map = nn.Linear(views * width, width, bias=False)
        self.view_maps = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(views))
        self.text_heads = nn.ModuleList(text_head(text_features, width) for _ in range(views))

    def of_case(self, seen_BVD: Tensor) -> Tensor:
        """Embeddings [B, D] of length 1 of cases; they mean something where all views are there."""
        return functional.normalize(self.case_map(seen_BVD.flatten(1)).float(), dim=1)

    def of_views(self, seen_BVD: Tensor) -> Tensor:
        """Embeddings [B, V, D] of length 1, each view in its own space."""
        mapped = [own(seen_BVD[:, view]) for view, own in enumerate(self.view_maps)]
        return functional.normalize(torch.stack(mapped, dim=1).float(), dim=2)

    def of_texts(self, features_NF: Tensor) -> list[Tensor]:
        """Embeddings [N, D] of length 1 of texts in the space of each view."""
        return [functional.normalize(head(features_NF).float(), dim=1) for head in self.text_heads]


class AlignViews(Align):
    """As ``Align``, with a space for each of the named views beside that of the whole case.

    The embedding of a case is of all its views together. A case that lacks a view has none, but those of the views
    that it has. Embeddings of different spaces do not compare, since each has a text head of its own.
    """

    def __init__(
        self,
        config: AlignConfig,
        *,
        vision: VisionTower,
        text: TextTower,
        projections: Mapping[str, Projection],
        heads: ViewHeads,
        tokenizer: Tokenizer,
    ) -> None:
        """``projections``: the shared one of images, and the text head of the case."""
        super().__init__(config, vision=vision, text=text, projections=projections, tokenizer=tokenizer)
        self.views = config.view_names
        self.spaces = ("", *(f"{name}_" for name in self.views))
        self.heads = heads
        self.view_losses = nn.ModuleList(build_contrastive(config.loss) for _ in self.views)

    @property
    def losses(self) -> list[ContrastiveLoss]:
        """The loss of the case, and that of each view."""
        return [self.loss, *self.view_losses]

    def seen(self, batch: Batch, views_NF: Tensor) -> Tensor:
        """What the shared tower and its projection give of each view, [B, V, D]; zeros where it is not there."""
        seen_ND = self.image_projection.layers(views_NF)
        there_BV = batch.views.there_BV
        seen_BVD: Tensor = seen_ND.new_zeros(*there_BV.shape, seen_ND.shape[1])
        return seen_BVD.index_put(there_BV.nonzero(as_tuple=True), seen_ND)

    def contrast(self, batch: Batch, views_NF: Tensor, texts_BF: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum or mean of the losses of all spaces, each over the cases that have what it is of; and each of them.

        A space of which the whole batch has fewer than two cases has nothing to tell apart, and a loss of 0.
        """
        seen_BVD, there_BV = self.seen(batch, views_NF), batch.views.there_BV
        images = [self.heads.of_case(seen_BVD), *self.heads.of_views(seen_BVD).unbind(1)]
        there_BL = torch.cat((there_BV.all(1, keepdim=True), there_BV), dim=1)
        counts = counts_over_processes(there_BL, repeated=batch.share == 0)
        if max(counts) < 2:
            raise ConfigError(
                f"a contrastive loss compares the pairs of a batch, and this batch has {max(counts)} of "
                f"{' or of '.join(self.views)}. Set data.loader.drop_last: true, or another data.loader.batch_size."
            )
        same_B, own_BK = self.same(batch)
        losses = {
            name: loss_of_those_there(
                loss, image_BD, text_BD, there_B=there_B, of=of, share=batch.share, same_B=same_B, own_BK=own_BK
            )
            for name, loss, image_BD, text_BD, there_B, of in zip(
                ("case", *self.views), self.losses, images, self.each_text(texts_BF), there_BL.unbind(1), counts,
                strict=True,
            )
        }  # fmt: skip
        assert self.config.views is not None
        total = torch.stack(list(losses.values())).sum()
        parts = {f"{name}_loss": loss.detach() for name, loss in losses.items()}
        scales = dict(zip(self.spaces, (1 / loss.scale.detach() for loss in self.losses), strict=True))
        parts |= {f"{space}temperature": temperature for space, temperature in scales.items()}
        return total / (len(losses) if self.config.views.loss == "mean" else 1), parts

    def each_text(self, features_NF: Tensor) -> list[Tensor]:
        """Embeddings [N, D] of texts in the space of the case, and in that of each view."""
        return [self.text_projection(features_NF), *self.heads.of_texts(features_NF)]

    def image_arrays(self, batch: Batch) -> dict[str, Tensor]:
        """What ``predict`` says of the images, and the scale of each space.

        ``tower_image_embeddings`` [B, V, D] are of length 1 and come before the maps, so that views compare;
        ``exchanged_image_embeddings`` [B, D] are of cases whose two views have changed places.
        """
        there_BV, like = batch.views.there_BV, self.loss.log_scale.detach()
        seen_BVD = like.new_zeros(*there_BV.shape, self.config.embedding_size)
        if bool(there_BV.any()):
            seen_BVD = self.seen(batch, self.view_features(batch)).float()
        there = [there_BV.all(1), *there_BV.unbind(1)]
        images = [self.heads.of_case(seen_BVD), *self.heads.of_views(seen_BVD).unbind(1)]
        arrays = {"tower_image_embeddings": functional.normalize(seen_BVD, dim=2)}
        if len(self.views) == 2:
            arrays["exchanged_image_embeddings"] = self.heads.of_case(seen_BVD.flip(1)) * there[0][:, None]
        for space, loss, image_BD, there_B in zip(self.spaces, self.losses, images, there, strict=True):
            arrays[f"{space}scale"] = loss.scale.detach().expand(len(batch))
            arrays[f"{space}has_image"] = there_B.float()
            arrays[f"{space}image_embeddings"] = image_BD * there_B[:, None]
        return arrays

    @torch.no_grad()
    def probed(self, batch: Batch) -> Mapping[str, Tensor]:
        """The mean features of the views below the projection, and the embeddings of cases, zeros where one lacks."""
        arrays = self.image_arrays(batch)
        return {
            "tower": self.image_features(batch),
            "embedding": arrays["image_embeddings"],
            "scale": arrays["scale"],
        }

    def parameter_groups(self) -> list[ParameterGroup]:
        """As without views; heads belong to the projections."""
        own = {"projection": self.heads.parameters(), "temperature": self.view_losses.parameters()}
        return [
            replace(group, parameters=[*group.parameters, *own.get(group.name, ())])
            for group in super().parameter_groups()
        ]

    def about(self) -> str:
        """The width of the spaces, and whose they are."""
        return f"{super().about()}, of cases and of their views ({', '.join(self.views)})"
