"""Models in the form of open_clip, as timm and transformers towers with the same outputs.

Its own transformers have the same layers under other names, which ``names`` maps. Architectures of it that
neither library has are refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consilium.core.errors import ConfigError, WeightsError
from consilium.core.licenses import License
from consilium.core.reporter import some
from consilium.models.checkpoints.layout import (
    CLIP,
    HALF,
    ImageLayout,
    ModelLayout,
    PretrainedInput,
    ProjectionLayout,
    TextLayout,
)
from consilium.models.checkpoints.names import OPEN_CLIP
from consilium.models.checkpoints.open_clip_text import bert_of, encoder_named
from consilium.models.checkpoints.pretrained import Joint, scalar
from consilium.models.config import TextPooling
from consilium.models.encoders import HubEncoder, LoadedEncoder, config_of, with_weights
from consilium.models.hub import ModelFolder
from consilium.models.licenses import file_licenses
from consilium.models.timm_models import load_timm, timm_width
from consilium.models.weights import load_state

_POOLERS = {"cls_last_hidden_state_pooler": "cls", "mean_pooler": "mean", "cls_pooler": "pooler"}
_RESNETS = {  # by their blocks: timm's name, and the width that it has
    (3, 4, 6, 3): ("resnet50_clip", 64),
    (3, 4, 23, 3): ("resnet101_clip", 64),
    (4, 6, 10, 6): ("resnet50x4_clip", 80),
    (6, 8, 18, 8): ("resnet50x16_clip", 96),
    (3, 15, 36, 10): ("resnet50x64_clip", 128),
}
_FITS = {"shortest": "crop", "longest": "pad", "squash": "stretch"}


class OpenClipModel:
    """A model described by open_clip's ``model_cfg``; ``file`` gives the place of its weights when they are needed."""

    def __init__(
        self,
        name: str,
        described: Mapping[str, Any],
        *,
        file: Callable[[], Path],
        source: str,
        place: ModelFolder,
    ) -> None:
        """``described`` is what an ``open_clip_config.json`` holds, ``place`` where the config said the model is.

        ``source`` is what the weights are called in their licence.
        """
        self.name, self._file, self._source, self._place = name, cache(file), source, place
        self._model: dict[str, Any] = described["model_cfg"]
        self._preprocess: dict[str, Any] = described.get("preprocess_cfg") or {}
        self._views = tuple(described.get("views", ()))
        self._vision: dict[str, Any] = dict(self._model["vision_cfg"])
        self._text: dict[str, Any] = dict(self._model["text_cfg"])
        for today, before in (("hf_proj_type", "proj"), ("hf_pooler_type", "pooler_type")):
            if before in self._text:
                self._text.setdefault(today, self._text.pop(before))

    @cached_property
    def layout(self) -> ModelLayout:
        """What the model is made of."""
        if self._model.get("multimodal_cfg"):
            raise self._unread("a decoder of texts (multimodal_cfg), as CoCa has")
        image, image_projection = self._image_layout()
        text, text_projection = self._text_layout()
        return ModelLayout(
            image=image,
            text=text,
            image_projection=image_projection,
            text_projection=text_projection,
            loss="softmax" if self._model.get("init_logit_bias") is None else "sigmoid",
            views=self._views,
        )

    def tokenizer(self) -> tuple[str, int]:
        """The folder's own, else the one that the config names, else that of CLIP."""
        folder = self._place.local
        if folder is not None and any((folder / f"tokenizer{end}.json").is_file() for end in ("", "_config")):
            return self._cleaned(HubEncoder(str(folder), place=self._place).tokenizer())
        if (named := self._text.get("hf_tokenizer_name")) is not None:
            return self._cleaned(HubEncoder(named, place=self._place).tokenizer())
        from consilium.models.checkpoints.clip_tokenizer import clip_tokenizer

        return clip_tokenizer(), 0

    def image(self, *, image_size: tuple[int, int], drop_path: float = 0.0) -> LoadedEncoder:
        """The image tower with its weights."""
        layout = self.layout.image
        if "timm_model_name" in self._vision:
            classifier = f"{self._timm_classifier()}." if self._projects_inside else None
            state = {
                name: tensor
                for name, tensor in self._below("visual.trunk.").items()
                if classifier is None or not name.startswith(classifier)
            }
        else:  # timm knows these names
            state = {
                f"visual.{name.replace('.ls_', '.ls')}": tensor
                for name, tensor in self._below("visual.").items()
                if name != "proj" and not name.startswith("attnpool.c_proj.")
            }
            if self._clipa:
                state = {name.replace(".ln_post.", ".fc_norm."): tensor for name, tensor in state.items()}
                state["visual.conv1.bias"] = torch.zeros(len(state["visual.conv1.weight"]))  # timm has one here
        origin = f"the weights of {self._source}"
        model = load_timm(layout, state, image_size=image_size, origin=origin, drop_path=drop_path)
        return LoadedEncoder(model, licenses=self._licenses)

    def text(self) -> LoadedEncoder:
        """The text tower with its weights."""
        config = config_of(self.layout.text.options)
        if "hf_model_name" in self._text:
            state = {
                name: value for name, value in self._below("text.transformer.").items() if "position_ids" not in name
            }
        else:
            state = {f"text_model.{name}": value for name, value in OPEN_CLIP.to_hub(self._native_text).items()}
        loaded = with_weights(config, state, origin=f"the weights of {self.name} are not those of its config")
        return replace(loaded, licenses=self._licenses)

    def joint(self) -> Joint:
        """Projections, temperature and bias."""
        log_scale = scalar(self._state, "logit_scale")
        if log_scale is None and not self._views:
            raise WeightsError(f"the weights of {self.name} have no logit_scale; they are not those of a CLIP.")
        projections = {"image": self._image_projection(), "text": self._text_projection()}
        return Joint(projections, log_scale or 0.0, scalar(self._state, "logit_bias"))

    @cached_property
    def _state(self) -> dict[str, Tensor]:
        return load_state(self._file())

    @property
    def _licenses(self) -> list[License]:
        return file_licenses(self._file(), source=self._source)

    @property
    def _native_text(self) -> dict[str, Tensor]:
        """The tensors of its own text transformer; of a plain CLIP they lie at the top."""
        below = self._below("text.", needed=False)
        return below or {name: value for name, value in self._state.items() if not name.startswith("visual.")}

    def _below(self, prefix: str, *, needed: bool = True) -> dict[str, Tensor]:
        found = {name.removeprefix(prefix): value for name, value in self._state.items() if name.startswith(prefix)}
        if needed and not found:
            raise WeightsError(
                f"the weights of {self.name} hold nothing below `{prefix}`, but "
                f"{some(sorted({name.partition('.')[0] for name in self._state}), 8)}; they are not those of its "
                "config."
            )
        return found

    # -- Images ---------------------------------------------------------------------------------------------------

    @property
    def _projects_inside(self) -> bool:
        """Whether timm's own classifier is the projection."""
        return not self._vision.get("timm_proj")

    def _timm_classifier(self) -> str:
        import timm

        cfg = timm.get_pretrained_cfg(self._vision["timm_model_name"])
        found = None if cfg is None else cfg.classifier
        if not isinstance(found, str):
            raise self._unread("a timm tower whose classifier is its projection, and of which timm names no classifier")
        return found

    def _image_layout(self) -> tuple[ImageLayout, ProjectionLayout]:
        vision, embed = self._vision, int(self._model["embed_dim"])
        if "timm_model_name" in vision:
            return self._timm_layout(embed)
        if isinstance(vision["layers"], list):
            return self._resnet_layout(embed)
        odd: dict[str, Any] = {
            "attentional_pool": False,
            "no_ln_pre": self._clipa,
            "final_ln_after_pool": self._clipa,
            "pool_type": "avg" if self._clipa else "tok",
        }
        different = [key for key, usual in odd.items() if vision.get(key, usual) != usual]
        if different or vision.get("norm_kwargs") or vision.get("act_kwargs") or vision.get("block_type"):
            raise self._unread(f"an image transformer with {', '.join(different) or 'options of its own'}")
        width = int(vision["width"])
        quick = "quickgelu_" if self._model.get("quick_gelu") else ""
        options = {
            "patch_size": vision["patch_size"],
            "embed_dim": width,
            "depth": vision["layers"],
            "num_heads": width // vision.get("head_width", 64),
            "mlp_ratio": vision.get("mlp_ratio", 4.0),
        }
        if vision.get("ls_init_value") is not None:
            options["init_values"] = vision["ls_init_value"]
        if self._clipa:
            options |= {"pre_norm": False, "global_pool": "avg", "fc_norm": True}
        layout = ImageLayout(
            library="timm", name=f"vit_base_patch16_clip_{quick}224", options=options, input=self._input()
        )
        return layout, ProjectionLayout(sizes=[width, embed], biases=[False])

    @property
    def _clipa(self) -> bool:
        """An image transformer that averages its patches and normalises after that, as CLIPA's."""
        return self._vision.get("pool_type") == "avg" and bool(self._vision.get("final_ln_after_pool"))

    def _resnet_layout(self, embed: int) -> tuple[ImageLayout, ProjectionLayout]:
        """A ResNet of CLIP; its attention pooling ends in the projection."""
        name = _RESNETS.get(tuple(self._vision["layers"]))
        if name is None or name[1] != self._vision.get("width", 64):
            raise self._unread(f"a ResNet of {self._vision['layers']} blocks")
        layout = ImageLayout(library="timm", name=name[0], options={}, input=self._input())
        return layout, ProjectionLayout(sizes=[timm_width(name[0], ""), embed], biases=[True])

    def _timm_layout(self, embed: int) -> tuple[ImageLayout, ProjectionLayout]:
        import timm

        vision, pool = self._vision, self._vision.get("timm_pool", "avg")
        name, projection = vision["timm_model_name"], vision.get("timm_proj", "linear") or ""
        if pool in ("abs_attn", "rot_attn"):
            raise self._unread(f"a timm tower with timm_pool: {pool}")
        if not timm.is_model(name):
            raise self._unread(f"the timm model {name}, which the installed timm does not have")
        layout = ImageLayout(
            library="timm", name=name, options={"global_pool": pool} if pool else {}, input=self._input()
        )
        width = timm_width(name, pool)
        if projection == "none":
            return layout, ProjectionLayout(sizes=[width])
        bias = bool(vision.get("timm_proj_bias", False)) or self._projects_inside
        if projection == "mlp":
            return layout, ProjectionLayout(sizes=[width, 2 * embed, embed], biases=[True, bias])
        return layout, ProjectionLayout(sizes=[width, embed], biases=[bias])

    def _image_projection(self) -> dict[str, Tensor]:
        if "timm_model_name" not in self._vision:
            if isinstance(self._vision["layers"], list):
                return _layer("0", self._below("visual.attnpool.c_proj."))
            return {"0.weight": self._needed("visual.proj").T.contiguous()}
        if self._projects_inside:
            return _layer("0", self._below(f"visual.trunk.{self._timm_classifier()}."))
        layers = {"linear": ("proj",), "mlp": ("mlp.fc1", "mlp.fc2"), "none": ()}[
            self._vision.get("timm_proj", "linear")
        ]
        found: dict[str, Tensor] = {}
        for number, layer in enumerate(layers):
            found |= _layer(str(number), self._below(f"visual.head.{layer}."))
        return found

    def _input(self) -> PretrainedInput:
        shown, size = self._preprocess, self._preprocess.get("size") or self._vision.get("image_size", 224)
        siglip = self._model.get("init_logit_bias") is not None
        usual = HALF if siglip else CLIP
        return PretrainedInput(
            mean=tuple(shown.get("mean") or usual[0]),
            std=tuple(shown.get("std") or usual[1]),
            size=(size, size) if isinstance(size, int) else tuple(size),
            interpolation=shown.get("interpolation", "bicubic"),
            fit=_FITS.get(shown.get("resize_mode", "squash" if siglip else "shortest")),
        )

    # -- Texts ----------------------------------------------------------------------------------------------------

    def _text_layout(self) -> tuple[TextLayout, ProjectionLayout]:
        text, embed = self._text, int(self._model["embed_dim"])
        context = int(text.get("context_length", 77))
        if "hf_model_name" in text:
            return self._hub_text_layout(embed, context)
        odd = {"embed_cls": False, "ls_init_value": None, "final_ln_after_pool": False}
        different = [key for key, usual in odd.items() if text.get(key, usual) != usual]
        pool, width = text.get("pool_type", "argmax"), int(text.get("width", 512))
        causal = not text.get("no_causal_mask", False)
        readouts: dict[str, TextPooling] = (
            {"argmax": "eot", "eos": "eot"} if causal else {"argmax": "eot", "last": "last_token"}
        )
        if different or text.get("block_type") or text.get("use_pad_mask") or pool not in readouts:
            which = ", ".join(different) or f"pool_type {pool}{'' if causal else ' and without a causal mask'}"
            raise self._unread(f"a text transformer with {which}")
        tanh = (text.get("act_kwargs") or {}).get("approximate") == "tanh"
        options = {
            "vocab_size": text.get("vocab_size", 49408),
            "hidden_size": width,
            "intermediate_size": int(width * text.get("mlp_ratio", 4.0)),
            "num_hidden_layers": text.get("layers", 12),
            "num_attention_heads": text.get("heads", 8),
            "max_position_embeddings": context,
            "layer_norm_eps": (text.get("norm_kwargs") or {}).get("eps", 1e-5),
            "hidden_act": "quick_gelu" if self._model.get("quick_gelu") else "gelu_pytorch_tanh" if tanh else "gelu",
        }
        readout: TextPooling = readouts[pool]
        projection = ProjectionLayout(sizes=[width, embed], biases=[bool(text.get("proj_bias", False))])
        if text.get("proj_type", "linear") == "none":
            projection = ProjectionLayout(sizes=[width])
        if causal:
            # The library takes 2 for: read out at the largest id of a text, as open_clip does.
            end = 2 if pool == "argmax" else text.get("eos_id", 2)
            options |= {"model_type": "clip_text_model", "eos_token_id": end, "projection_dim": embed}
        else:
            options |= {"model_type": "siglip_text_model", "projection_size": embed}
            if pool == "last" and projection.biases == [True]:  # SigLIP's, whose tower has the projection inside
                readout, projection = "pooler", ProjectionLayout(sizes=[embed])
        return TextLayout(options=options, pooling=readout, context_length=context), projection

    def _hub_text_layout(self, embed: int, context: int) -> tuple[TextLayout, ProjectionLayout]:
        text = self._text
        pooler = text.get("hf_pooler_type", "mean_pooler")
        if pooler not in _POOLERS:
            raise self._unread(f"a text tower with hf_pooler_type: {pooler}")
        options = self._hub_text_config()
        width = int(config_of(options).hidden_size)
        kind = text.get("hf_proj_type", "mlp")
        if kind == "mlp":
            projection = ProjectionLayout(sizes=[width, (width + embed) // 2, embed], biases=[False, False])
        elif kind == "linear":
            projection = ProjectionLayout(sizes=[width, embed], biases=[False])
        else:
            projection = ProjectionLayout(sizes=[width])
        return TextLayout(options=options, pooling=_POOLERS[pooler], context_length=context), projection

    def _hub_text_config(self) -> dict[str, Any]:
        """The architecture of the text tower: by its name, or by the shapes of its tensors where that is not here."""
        name = self._text["hf_model_name"]
        if self._place.local is not None and not Path(name).expanduser().is_dir():
            return bert_of(self._below("text.transformer."), origin=f"the text tower of {self.name} ({name})")
        return encoder_named(name, place=self._place)

    def _text_projection(self) -> dict[str, Tensor]:
        if "hf_model_name" in self._text:
            kind = self._text.get("hf_proj_type", "mlp")
            layers = {"mlp": ("0", "2"), "linear": ("",)}.get(kind, ())
            found: dict[str, Tensor] = {}
            for number, layer in enumerate(layers):
                found |= _layer(str(number), self._below(f"text.proj.{layer}.".replace("..", ".")))
            return found
        own = self._native_text
        if not self.layout.text_projection.biases:
            return {}
        if "text_projection" in own:
            return {"0.weight": own["text_projection"].T.contiguous()}
        prefix = "text_projection."
        return _layer("0", {name.removeprefix(prefix): own[name] for name in own if name.startswith(prefix)})

    def _cleaned(self, found: tuple[str, int]) -> tuple[str, int]:
        """A tokenizer that also does what open_clip does to a text before, and to its tokens after."""
        from consilium.models.checkpoints.clip_tokenizer import canonical, with_zero_at_the_end

        definition, pad_id = found
        asked = self._text.get("tokenizer_kwargs") or {}
        if asked.get("clean") == "canonicalize":
            definition = canonical(definition)
        if asked.get("strip_sep_token"):
            definition = with_zero_at_the_end(definition)
        return definition, pad_id

    def _needed(self, name: str) -> Tensor:
        if name not in self._state:
            raise WeightsError(f"the weights of {self.name} lack {name}; they are not those of its config.")
        return self._state[name]

    def _unread(self, what: str) -> ConfigError:
        return ConfigError(f"{self._place.key} '{self.name}' has {what}; Consilium does not read this architecture.")


def read_description(file: Path) -> dict[str, Any]:
    """What an ``open_clip_config.json`` holds; one that cannot be used is a WeightsError."""
    try:
        described: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        for key in ("embed_dim", "vision_cfg", "text_cfg"):
            described["model_cfg"][key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{file} is not the config of an open_clip model ({type(error).__name__}: {error}); expected model_cfg "
            "with embed_dim, vision_cfg and text_cfg."
        ) from error
    return described


def _layer(number: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{number}.{name}": tensor for name, tensor in tensors.items()}
