"""The model card of an export: what it is, how its library loads it, its licence, and the card of the bundle."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from consilium.core.files import write_text
from consilium.core.licenses import License, license_warnings
from consilium.export.forms import IMAGE_TOWER, Form
from consilium.export.hugging_face import IMAGE_TOWER as TOWER_FOLDER
from consilium.manifest import Manifest
from consilium.models.trained import DualEncoder, Trained

CARD, _OWN = "README.md", "MODEL_CARD.md"
_LIBRARIES = {
    "hf": "transformers",
    "open_clip": "open_clip",
    "timm": "timm",
    "onnx": "onnx",
    "safetensors": "safetensors",
}
_FRONT = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_USE = re.compile(r"^## Use\n.*?(?=^## )", re.DOTALL | re.MULTILINE)
_HERE = re.compile(r"^\| Date \|[^\n]*\n|^```\nconsilium .*?^```\n?", re.DOTALL | re.MULTILINE)  # of this machine alone


def write_card(
    folder: Path,
    *,
    bundle: Path,
    manifest: Manifest,
    model: Trained,
    form: Form,
    kind: str,
    notes: Sequence[str],
) -> None:
    """Write ``README.md``; ``notes`` are what the form cannot say of the images."""
    own = bundle / _OWN
    text = _FRONT.sub("", own.read_text(encoding="utf-8")) if own.is_file() else f"# {manifest.name}\n"
    text = _HERE.sub("", _USE.sub("", text)).strip()
    differs = "".join(f"- {note}\n" for note in notes)
    sections = [
        f"---\n{_front(model, form, kind, manifest.licenses)}---\n",
        text,
        f"## Use\n\nThis folder holds the model for {_LIBRARIES[form]} ({kind}):\n\n{loading(model, form, kind)}",
        *([f"## How images are prepared\n\n{differs.strip()}"] if notes else []),
        *([f"## Licences\n\n{_warned(manifest.licenses)}"] if _warned(manifest.licenses) else []),
    ]
    write_text(folder / CARD, "\n\n".join(section.strip("\n") for section in sections) + "\n")


def loading(model: Trained, form: Form, kind: str) -> str:
    """The other library's own call, as code."""
    alone = form == "hf" and kind == IMAGE_TOWER
    dual = isinstance(model, DualEncoder) and not alone
    hub = kind if dual else "AutoModel" if alone else "AutoModelForImageClassification"
    lines = {
        "hf": [
            f"from transformers import AutoImageProcessor, {hub}",
            "",
            f'model = {hub}.from_pretrained("FOLDER")',
            'processor = AutoImageProcessor.from_pretrained("FOLDER")',
        ],
        "open_clip": [
            "import open_clip",
            "",
            'model, preprocess = open_clip.create_model_from_pretrained("local-dir:FOLDER")',
            'tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")',
        ],
        "timm": ["import timm", "", 'model = timm.create_model("local-dir:FOLDER", pretrained=True)'],
        "onnx": ["import onnxruntime", "", 'images = onnxruntime.InferenceSession("FOLDER/image.onnx")'],
        "safetensors": [
            "from safetensors.torch import load_file",
            "",
            'tensors = load_file("FOLDER/model.safetensors")  # model.json says what they are',
        ],
    }[form]
    if dual and form == "hf":
        lines[0] = f"from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, {kind}"
        lines += [
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
            f'tower = AutoModel.from_pretrained("FOLDER/{TOWER_FOLDER}")  # the image tower alone',
        ]
    if dual and form == "onnx":
        lines.append('texts = onnxruntime.InferenceSession("FOLDER/text.onnx")')
    code = "\n".join(lines)
    return f"```python\n{code}\n```"


def _front(model: Trained, form: Form, kind: str, licenses: Sequence[License] | None) -> str:
    dual = isinstance(model, DualEncoder)
    tag = "zero-shot-image-classification" if dual else "image-classification"
    front: dict[str, object] = {
        "library_name": _LIBRARIES[form],
        "pipeline_tag": "image-feature-extraction" if kind == IMAGE_TOWER else tag,
        "tags": ["medical-imaging", "consilium"],
        **_license(licenses),
    }
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def _license(licenses: Sequence[License] | None) -> dict[str, str]:
    """The licence as a hub names it: that of the starting weights where there is one, else that of whoever trained."""
    names = sorted({license.name or "unknown" for license in licenses or ()})
    if not names:
        return {}
    if len(names) == 1 and "unknown" not in names:
        return {"license": names[0].lower()}
    return {"license": "other", "license_name": " and ".join(names)}


def _warned(licenses: Sequence[License] | None) -> str:
    return "\n".join(f"- {text}" for text in license_warnings(licenses or ()))
