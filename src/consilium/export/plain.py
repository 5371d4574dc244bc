"""Weights as a plain state dict, and a description of the model that any library can be made to follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consilium.core.files import write_json
from consilium.data.config import ImageConfig
from consilium.export.onnx_files import answers, similarity
from consilium.export.preprocessing import in_words
from consilium.export.tokens import save_tokenizer
from consilium.models.trained import DualEncoder, Layers, Trained
from consilium.models.vision import VisionTower
from consilium.models.weights import save_state

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


def write_plain(model: Trained, folder: Path, *, image: ImageConfig) -> None:
    """Write the weights of each part under its name, and ``model.json``."""
    tensors = _below("image", model.vision.model)
    described: dict[str, Any] = {
        "image": {**_image(model), "preprocessing": in_words(image)},
    }
    if isinstance(model, DualEncoder):
        tensors |= _below("text", model.text.model)
        for name, module in (("image_projection", model.image_projection), ("text_projection", model.text_projection)):
            tensors |= _linear(name, module)
            described[name] = _layers(module)
        tensors["log_scale"] = torch.tensor(model.log_scale)
        described["text"] = {
            "library": "transformers",
            "config": dict(model.text.architecture),
            "pooling": model.text.pooling,
            "reads_padding": model.text.reads_padding,
            "context_length": model.tokenizer.context_length,
            "pad_id": model.tokenizer.pad_id,
            "tokenizer": "tokenizer.json",
        }
        described |= similarity(model)
        save_tokenizer(model.tokenizer, folder, masked=not model.text.reads_padding)
    else:
        tensors |= _linear("head", model.head)
        described["head"] = _layers(model.head)
        described["answers"] = answers(model)
        tensors["temperatures"] = model.temperatures_K
        if bool(model.offsets_K.any()):  # of a calibration on a site's cases, added to the scores over temperatures
            tensors["offsets"] = model.offsets_K
    save_state(tensors, folder / WEIGHTS)
    write_json(folder / DESCRIPTION, described)


def _image(model: Trained) -> dict[str, Any]:
    tower: VisionTower = model.vision
    options = dict(model.layout.options)
    kind = {"name": model.layout.name, "options": options} if tower.library == "timm" else {"config": options}
    return {"library": tower.library, **kind, "pooling": tower.pooling, "readout": model.layout.readout}


def _below(prefix: str, module: Any) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}


def _linear(prefix: str, module: Any) -> dict[str, Tensor]:
    """The linear layers of a head or projection, numbered from 0."""
    return {
        f"{prefix}.{number}.{name}": tensor
        for number, layer in enumerate(Layers.of(module).linear)
        for name, tensor in layer.state_dict().items()
    }


def _layers(module: Any) -> dict[str, Any]:
    layers = Layers.of(module)
    return {
        "layers": [[layer.in_features, layer.out_features] for layer in layers.linear],
        "activation": None if layers.activation is None else layers.activation.__name__.lower(),
    }
