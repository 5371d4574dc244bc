"""A folder of transformers: a whole image-text model and its image tower alone, or a classifier of images."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consilium.core.errors import ExportError
from consilium.core.files import write_json
from consilium.core.reporter import some
from consilium.data.config import ImageConfig
from consilium.export.checks import Probe, same
from consilium.export.forms import is_clip, is_quick, is_vit
from consilium.export.preprocessing import for_transformers
from consilium.export.timm_folder import timm_model, tower_outputs, write_timm
from consilium.export.tokens import save_tokenizer
from consilium.models.checkpoints.names import TIMM_CLIP, TIMM_VIT
from consilium.models.encoders import architecture_of, config_of, quiet
from consilium.models.trained import DualEncoder, ImageClassifier, Layers, Trained
from consilium.models.vision import VisionTower

IMAGE_TOWER = "image_tower"
_PREPROCESSOR = "preprocessor_config.json"


def write_hub(model: Trained, folder: Path, *, image: ImageConfig, form: str) -> None:
    """Write the model as the class ``form`` of transformers."""
    if isinstance(model, ImageClassifier):
        _write_classifier(model, folder, image=image)
        return
    with quiet():
        _whole(model, form, image).save_pretrained(folder)
    write_json(folder / _PREPROCESSOR, for_transformers(image))
    save_tokenizer(model.tokenizer, folder, masked=not model.text.reads_padding)
    write_image_tower(model, folder / IMAGE_TOWER, image=image)


def write_image_tower(model: Trained, folder: Path, *, image: ImageConfig) -> None:
    """Write the image tower alone, as ``AutoModel`` reads it."""
    folder.mkdir(exist_ok=True)
    if _native(model.vision):
        with quiet():
            _vision(model, image).save_pretrained(folder)
        write_json(folder / _PREPROCESSOR, for_transformers(image))
    else:
        write_timm(model, folder, image=image)


def check_hub(model: Trained, folder: Path, *, image: ImageConfig, form: str) -> list[str]:
    """Load what was written with transformers alone."""
    import transformers

    probe = Probe.of(image.size, model.tokenizer if isinstance(model, DualEncoder) else None)
    pixels = probe.images_BCHW
    with quiet():
        if isinstance(model, ImageClassifier):
            classifier = transformers.AutoModelForImageClassification.from_pretrained(
                folder, dtype=torch.float32
            ).eval()
            theirs = {"features": lambda: classifier(pixel_values=pixels).logits}
            return [same(tower_outputs(model, probe), theirs, by=f"{form}.from_pretrained")]
        whole = getattr(transformers, form).from_pretrained(folder, dtype=torch.float32).eval()
    assert probe.texts is not None
    asked = {"input_ids": probe.texts.tokens_BT}
    if not model.text.reads_padding:
        asked["attention_mask"] = probe.texts.attention_BT
    theirs = {
        "image": lambda: whole.get_image_features(pixel_values=pixels).pooler_output,
        "text": lambda: whole.get_text_features(**asked).pooler_output,
    }
    embedded = same(probe.embedded(model), theirs, by=f"{form}.from_pretrained")
    return [embedded, check_image_tower(model, folder / IMAGE_TOWER, image=image)]


def check_image_tower(model: Trained, folder: Path, *, image: ImageConfig) -> str:
    """Load the image tower with transformers alone."""
    from transformers import AutoModel

    pixels_BCHW = Probe.of(image.size, None).images_BCHW
    with quiet():
        tower = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    found = {"tokens": lambda: tower(pixel_values=pixels_BCHW).last_hidden_state}
    return same(
        {"tokens": patch_tokens(model.vision, pixels_BCHW)}, found, by="AutoModel.from_pretrained (image tower)"
    )


@torch.no_grad()
def patch_tokens(tower: VisionTower, images_BCHW: Tensor) -> Tensor:
    """Features of an image tower before they are pooled; of a CLIP before its last norm, as transformers has them."""
    if tower.library == "transformers":
        hidden: Tensor = tower.model(pixel_values=images_BCHW).last_hidden_state
        return hidden
    if not is_clip(tower):
        maps: Tensor = tower.model.forward_features(images_BCHW)
        return maps
    ((patches, first),) = tower.model.forward_intermediates(
        images_BCHW, indices=1, output_fmt="NLC", return_prefix_tokens=True, intermediates_only=True
    )
    return torch.cat((first, patches), dim=1)


def _native(tower: VisionTower) -> bool:
    """Whether transformers has the tower itself, and not only by way of timm."""
    return tower.library == "transformers" or is_clip(tower) or is_vit(tower)


def _vision(model: Trained, image: ImageConfig, *, pools: bool = False) -> Any:
    """The image tower as a model of transformers; with ``pools`` one that gives what the expert projects."""
    import transformers

    tower = model.vision
    if tower.library == "transformers":
        return copy.deepcopy(tower.model)
    own = tower.model
    if is_clip(tower):
        config: Any = transformers.CLIPVisionConfig(**_transformer(own, image), hidden_act=_act(tower))
        return _loaded(transformers.CLIPVisionModel, config, _flat(TIMM_CLIP.to_hub(own.state_dict())))
    if is_vit(tower) and not pools:
        config = transformers.ViTConfig(**_transformer(own, image), hidden_act="gelu", qkv_bias=True)
        state = TIMM_VIT.to_hub(own.state_dict())
        return _loaded(transformers.ViTModel, config, state, add_pooling_layer=False)
    made, arguments = timm_model(model, image)
    config = transformers.TimmWrapperConfig(
        architecture=made.pretrained_cfg["architecture"], model_args=arguments, hidden_size=tower.num_features
    )
    wrapped = transformers.TimmWrapperModel(config)
    wrapped.load_state_dict(made.state_dict())
    return wrapped


def _transformer(own: Any, image: ImageConfig) -> dict[str, Any]:
    """The architecture of a vision transformer of timm in the words of transformers."""
    block = own.blocks[0]
    return {
        "hidden_size": own.embed_dim,
        "intermediate_size": block.mlp.fc1.out_features,
        "num_hidden_layers": len(own.blocks),
        "num_attention_heads": block.attn.num_heads,
        "image_size": image.size[0],
        "patch_size": own.patch_embed.patch_size[0],
        "layer_norm_eps": own.norm.eps,
    }


def _act(tower: VisionTower) -> str:
    return "quick_gelu" if is_quick(tower) else "gelu"


def _flat(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tokens and positions of timm have an axis for the batch, which CLIP has not."""
    places = {"embeddings.class_embedding": -1, "embeddings.position_embedding.weight": -2}
    return {name: tensor.flatten(0, places[name]) if name in places else tensor for name, tensor in state.items()}


def _loaded(kind: Any, config: Any, state: Mapping[str, Tensor], **options: Any) -> Any:
    """A model with these weights; each of its own must be among them, but for a token that only pre-training uses."""
    with quiet():
        model, info = kind.from_pretrained(
            None, config=config, state_dict=dict(state), dtype=torch.float32, output_loading_info=True, **options
        )
    odd = [name for name in (*info["missing_keys"], *info["unexpected_keys"]) if not name.endswith("mask_token")]
    if odd:
        raise ExportError(f"transformers' {kind.__name__} has other tensors than this model: {some(sorted(odd), 5)}.")
    return model.eval()


def _whole(model: DualEncoder, form: str, image: ImageConfig) -> Any:
    """Both towers, their projections and the scale as a model of transformers."""
    import transformers

    text_config = config_of({**model.text.architecture, "pad_token_id": _padding(model)})
    towers = {"vision_model": _vision(model, image, pools=True), "text_model": model.text.model}
    sides = {"visual_projection": model.image_projection, "text_projection": model.text_projection}
    layers = {name: Layers.of(projection).linear for name, projection in sides.items()}
    if form == "VisionTextDualEncoderModel":
        text = copy.deepcopy(towers["text_model"])
        config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
            towers["vision_model"].config, text_config, projection_dim=model.width
        )
        whole = transformers.VisionTextDualEncoderModel(config, vision_model=towers["vision_model"], text_model=text)
        for name, (layer,) in layers.items():
            whole.get_submodule(name).load_state_dict(layer.state_dict())
        whole.logit_scale.data.fill_(model.log_scale)
        return whole.eval()
    parts = {
        "vision_config": architecture_of(towers["vision_model"].config),
        "text_config": architecture_of(text_config),
    }
    state = {f"{part}.{name}": value for part, own in towers.items() for name, value in own.state_dict().items()}
    state |= {f"{name}.weight": layer.weight.detach() for name, own in layers.items() for layer in own}
    config_class = getattr(transformers, form.replace("Model", "Config"))
    width = {} if form == "SiglipModel" else {"projection_dim": model.width}
    state["logit_scale"] = torch.tensor(model.log_scale)
    if form == "SiglipModel":
        state |= {"logit_scale": torch.tensor([model.log_scale]), "logit_bias": torch.tensor([model.bias or 0.0])}
    return _loaded(getattr(transformers, form), config_class(**parts, **width), state)


def _padding(model: DualEncoder) -> int:
    own: int | None = model.text.architecture.get("pad_token_id")
    return model.tokenizer.pad_id if own is None else own


def _write_classifier(model: ImageClassifier, folder: Path, *, image: ImageConfig) -> None:
    if model.vision.library == "timm":
        write_timm(model, folder, image=image)
        return
    import transformers

    names = list(model.labels.names)
    config = copy.deepcopy(model.vision.model.config)
    config.id2label, config.label2id = dict(enumerate(names)), {name: place for place, name in enumerate(names)}
    config.problem_type = "multi_label_classification" if model.multi_label else "single_label_classification"
    state = {f"vit.{name}": value for name, value in model.vision.model.state_dict().items()}
    state |= dict(zip(("classifier.weight", "classifier.bias"), model.last_layer(), strict=True))
    with quiet():
        _loaded(transformers.ViTForImageClassification, config, state).save_pretrained(folder)
    write_json(folder / _PREPROCESSOR, for_transformers(image))
