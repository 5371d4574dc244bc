"""ONNX files: images, and texts of an expert, with a description of what goes in and comes out.

Axes in names: B case in a batch, C channel, H height, W width, T token, D number of an embedding, K class.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from consilium.core.errors import MissingExtraError
from consilium.core.files import write_json
from consilium.data.config import ImageConfig
from consilium.export.checks import Probe, same
from consilium.export.preprocessing import in_words
from consilium.export.tokens import save_tokenizer
from consilium.models.trained import DualEncoder, ImageClassifier, Trained

OPSET = 20
IMAGE, TEXT, DESCRIPTION = "image.onnx", "text.onnx", "onnx.json"
BATCHES = (1, 3, 7)  # at which what was written is compared
_ONE_FILE = 1_500_000_000  # bytes of weights; protobuf holds no more than 2 GB


class _Images(nn.Module):
    def __init__(self, model: Trained) -> None:
        super().__init__()
        self.tower = model.vision
        self.rest = model.image_projection if isinstance(model, DualEncoder) else model.head
        self._model = model

    def forward(self, pixel_values: Tensor) -> Any:
        found_BK = self.rest(self.tower(pixel_values))
        if isinstance(self._model, DualEncoder):
            return found_BK
        return self._model.scaled(found_BK), self._model.probabilities(found_BK)


class _Texts(nn.Module):
    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.tower, self.projection = model.text, model.text_projection

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        embeddings_BD: Tensor = self.projection(self.tower(input_ids, attention_mask))
        return embeddings_BD


def write_onnx(model: Trained, folder: Path, *, image: ImageConfig) -> None:
    """Write the files; the batch is dynamic, and so is the length of a text but where the tower reads its padding."""
    _needed()
    batch = torch.export.Dim("batch", min=1)
    pixels_BCHW = torch.zeros(2, 3, *image.size)
    outputs = ["image_embedding"] if isinstance(model, DualEncoder) else ["logits", "probabilities"]
    _export(_Images(model), folder / IMAGE, {"pixel_values": pixels_BCHW}, {"pixel_values": {0: batch}}, outputs)
    described = _described(model, image, outputs)
    if isinstance(model, DualEncoder):
        length = model.tokenizer.context_length
        axes: dict[int, Any] = {0: batch}
        if not model.text.reads_padding:
            axes[1] = torch.export.Dim("length", min=1, max=length)
        tokens_BT = torch.ones(2, length if model.text.reads_padding else max(2, length - 1), dtype=torch.int64)
        inputs = {"input_ids": tokens_BT, "attention_mask": torch.ones_like(tokens_BT)}
        _export(_Texts(model), folder / TEXT, inputs, dict.fromkeys(inputs, axes), ["text_embedding"])
        save_tokenizer(model.tokenizer, folder, masked=True)
    write_json(folder / DESCRIPTION, described)


def check_onnx(model: Trained, folder: Path, *, image: ImageConfig) -> list[str]:
    """Run the files in onnxruntime at several batches and lengths."""
    runtime = _needed()
    said = []
    images = runtime.InferenceSession(str(folder / IMAGE), providers=["CPUExecutionProvider"])
    texts = None
    if isinstance(model, DualEncoder):
        texts = runtime.InferenceSession(str(folder / TEXT), providers=["CPUExecutionProvider"])
    for count in BATCHES:
        probe = Probe.of(image.size, None)
        pixels_BCHW = torch.cat([probe.images_BCHW] * 3)[:count]
        found = [torch.from_numpy(array) for array in images.run(None, {"pixel_values": pixels_BCHW.numpy()})]
        with torch.no_grad():
            if isinstance(model, ImageClassifier):
                logits_BK = model.logits(pixels_BCHW)
                own = {"logits": model.scaled(logits_BK), "probabilities": model.probabilities(logits_BK)}
                theirs = dict(zip(own, found, strict=True))
            else:
                padded = model.tokenizer.pad(
                    model.tokenizer.encode(["a normal finding " * (n + 1) for n in range(count)])
                )
                own = {"image": model.embed_images(pixels_BCHW)}
                own["text"] = model.embed_texts(padded.tokens_BT, padded.attention_BT)
                given = {"input_ids": padded.tokens_BT.numpy(), "attention_mask": padded.attention_BT.numpy()}
                assert texts is not None
                wanted = {each.name for each in texts.get_inputs()}
                (embedding,) = texts.run(None, {name: array for name, array in given.items() if name in wanted})
                theirs = {"image": found[0], "text": torch.from_numpy(embedding)}
        said.append(same(own, theirs, by=f"onnxruntime, batch of {count}"))
    return said


def _export(module: nn.Module, path: Path, inputs: dict[str, Tensor], axes: dict[str, Any], outputs: list[str]) -> None:
    size = sum(own.numel() * own.element_size() for own in module.parameters())
    module = copy.deepcopy(module).eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
    with _quiet(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=axes,
            opset_version=OPSET,
            dynamo=True,
            external_data=size > _ONE_FILE,
            verbose=False,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes of the exporter on its own work."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _described(model: Trained, image: ImageConfig, outputs: list[str]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "opset": OPSET,
        "image": {
            "file": IMAGE,
            "input": {"name": "pixel_values", "type": "float32", "shape": ["batch", 3, *image.size]},
            "outputs": outputs,
            "preprocessing": in_words(image),
        },
    }
    if isinstance(model, ImageClassifier):
        return {**described, "answers": answers(model)}
    length: Any = model.tokenizer.context_length if model.text.reads_padding else "length"
    described["text"] = {
        "file": TEXT,
        "inputs": {name: {"type": "int64", "shape": ["batch", length]} for name in ("input_ids", "attention_mask")},
        "outputs": ["text_embedding"],
        "tokenizer": "tokenizer.json",
        "context_length": model.tokenizer.context_length,
        "pad_id": model.tokenizer.pad_id,
        "padding": "to context_length" if model.text.reads_padding else "to the longest text of a batch",
    }
    return {**described, **similarity(model)}


def similarity(model: DualEncoder) -> dict[str, Any]:
    """What embeddings mean: their length, and what turns their products into scores."""
    return {
        "embedding": {"size": model.width, "length": 1, "log_scale": model.log_scale, "bias": model.bias},
    }


def answers(model: ImageClassifier) -> dict[str, Any]:
    """What the scores of a classifier mean."""
    parents = [model.labels.parent(node) for node in range(len(model.labels))]
    found: dict[str, Any] = {
        "labels": list(model.labels.names),
        "multi_label": model.multi_label,
        "activation": "sigmoid" if model.multi_label else "softmax among labels with the same parent",
    }
    if model.multi_label:
        return {**found, "threshold": model.threshold}
    if model.labels.nested:
        found |= {"parents": parents, "probability": "of the path: the product of those from the root down"}
    thresholds = model.calibration.thresholds
    return {**found, **({"thresholds_by_level": thresholds} if thresholds else {})}


def _needed() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("export --to onnx", "onnx") from error
    return onnxruntime
