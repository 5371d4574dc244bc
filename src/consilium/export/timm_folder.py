"""A folder as timm has it on a hub, which transformers reads too: an image tower, or a classifier of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from consilium.core.files import write_json
from consilium.data.config import ImageConfig
from consilium.export.checks import Probe, same
from consilium.export.preprocessing import for_timm
from consilium.models.timm_models import sized_timm
from consilium.models.trained import DualEncoder, ImageClassifier, Trained
from consilium.models.weights import save_state

WEIGHTS = "model.safetensors"


def timm_model(model: Trained, image: ImageConfig) -> tuple[Any, dict[str, Any]]:
    """The tower, with the head of a classifier, as one model of timm, and the arguments that make it again."""
    options, name = dict(model.layout.options), model.layout.name
    classes = len(model.labels) if isinstance(model, ImageClassifier) else 0
    made: Any
    made, sized = sized_timm(name, image_size=image.size, arguments={"num_classes": classes, **options})
    state: dict[str, Tensor] = dict(model.vision.model.state_dict())
    if isinstance(model, ImageClassifier):
        layer = made.pretrained_cfg["classifier"]
        state |= dict(zip((f"{layer}.weight", f"{layer}.bias"), model.last_layer(), strict=True))
        shape = made.get_parameter(f"{layer}.weight").shape
        state[f"{layer}.weight"] = state[f"{layer}.weight"].reshape(shape)  # of some it is a convolution
    made.load_state_dict(state)
    return made.eval(), {**options, **({"img_size": list(image.size)} if sized else {})}


def write_timm(model: Trained, folder: Path, *, image: ImageConfig) -> None:
    """Write weights and ``config.json``."""
    made, arguments = timm_model(model, image)
    save_state(made.state_dict(), folder / WEIGHTS)
    classes: dict[str, Any] = {"num_classes": 0}
    if isinstance(model, ImageClassifier):
        names = list(model.labels.names)
        classes = {"num_classes": len(names), "label_names": names}
        if model.multi_label:
            classes["problem_type"] = "multi_label_classification"
    own = made.pretrained_cfg
    known = {key: own[key] for key in ("pool_size", "first_conv", "classifier") if own.get(key) is not None}
    config = {
        "architecture": own["architecture"],
        **classes,
        "num_features": model.vision.num_features,
        "model_args": arguments,
        "pretrained_cfg": {
            **known,
            **for_timm(image),
            "num_classes": classes["num_classes"],
            "fixed_input_size": "img_size" in arguments,
        },
    }
    write_json(folder / "config.json", config)


def check_timm(model: Trained, folder: Path, *, image: ImageConfig) -> str:
    """Load the folder with timm alone."""
    import timm

    probe = Probe.of(image.size, None)
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return same(tower_outputs(model, probe), {"features": lambda: loaded(probe.images_BCHW)}, by="timm.create_model")


@torch.no_grad()
def tower_outputs(model: Trained, probe: Probe) -> dict[str, Tensor]:
    """Calibrated scores of a classifier, features of the image tower of an expert."""
    if isinstance(model, DualEncoder):
        return {"features": model.vision(probe.images_BCHW)}
    return {"features": model.scaled(model.logits(probe.images_BCHW))}
