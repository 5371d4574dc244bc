"""How images are prepared, in the words of other libraries, and what those cannot say."""

from __future__ import annotations

from typing import Any

from consilium.data.config import ImageConfig
from consilium.evaluation.config import AveragingConfig
from consilium.export.forms import Form

_PILLOW = {"bilinear": 2, "bicubic": 3}
_OPEN_CLIP = {"stretch": "squash", "crop": "shortest", "pad": "longest"}
_TIMM = {"stretch": "squash", "crop": "center", "pad": "border"}


def for_open_clip(image: ImageConfig) -> dict[str, Any]:
    """``preprocess_cfg`` of open_clip."""
    return {
        "size": list(image.size),
        "mode": "RGB",
        "mean": list(image.mean),
        "std": list(image.std),
        "interpolation": image.interpolation,
        "resize_mode": _OPEN_CLIP[image.fit],
        "fill_color": 0,
    }


def for_timm(image: ImageConfig) -> dict[str, Any]:
    """The part of timm's ``pretrained_cfg`` that says how images are prepared."""
    return {
        "input_size": [3, *image.size],
        "mean": list(image.mean),
        "std": list(image.std),
        "interpolation": image.interpolation,
        "crop_pct": 1.0,
        "crop_mode": _TIMM[image.fit],
    }


def for_transformers(image: ImageConfig) -> dict[str, Any]:
    """``preprocessor_config.json`` of transformers."""
    height, width = image.size
    size = {"height": height, "width": width}
    crops = image.fit == "crop"
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": max(height, width)} if crops else size,
        "resample": _PILLOW[image.interpolation],
        "do_center_crop": crops,
        "crop_size": size,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(image.mean),
        "image_std": list(image.std),
    }


def in_words(image: ImageConfig) -> dict[str, Any]:
    """What whoever writes the preparation has to do, for files that no library reads by itself."""
    fits = {
        "stretch": "resize to `size`, both sides on their own",
        "crop": "cut the largest centred rectangle with the shape of `size`, then resize it to `size`",
        "pad": "resize to fit into `size` with the shape kept, then fill with black around it",
    }
    return {
        "size": list(image.size),
        "fit": image.fit,
        "interpolation": image.interpolation,
        "mean": list(image.mean),
        "std": list(image.std),
        "window": image.window,
        "steps": [
            "decode to RGB of 8 bits, upright by EXIF, transparent pixels on white",
            fits[image.fit],
            f"resize with antialiasing, {image.interpolation}",
            "divide by 255, subtract `mean`, divide by `std`; channels first",
        ],
    }


def differences(form: Form, image: ImageConfig, *, looks: AveragingConfig) -> list[str]:
    """What the form cannot say of the images; who uses it has to do that."""
    found = []
    library = {"hf": "transformers", "open_clip": "open_clip", "timm": "timm"}.get(form)
    if library is not None:
        if image.fit == "crop":
            found.append(
                f"{library} resizes an image before it cuts, and rounds its sides then; Consilium cuts first. Pixels "
                "differ by a few levels of 255, most at the border of the cut."
            )
            if image.size[0] != image.size[1] and form == "hf":
                found.append("transformers cuts another part of an image where `size` is no square.")
        if image.fit == "pad" and form == "timm":
            found.append("timm fills the border with the mean colour, Consilium with black.")
        if image.fit == "pad" and form == "hf":
            found.append("transformers stretches the image; Consilium fits it and fills the border with black.")
        found.append(
            "Transparent pixels and EXIF orientation: Consilium lays the first on white, and applies the second."
        )
    if image.window is not None:
        found.append(
            f"Grey values of more than 8 bits are shown with the window {list(image.window)}: make 8-bit images so."
        )
    if looks.looks > 1:
        found.append(f"Consilium averages over {looks.looks} looks at an image; the exported model has one.")
    return found
