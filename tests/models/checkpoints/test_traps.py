"""What costs a wrong embedding without an error: how texts are padded, what libraries return, how images are prepared.

Ten such traps are known. Each has a test whose description begins with its number; the others are in test_find.py,
test_convert.py, test_image_towers.py and test_lora.py.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from torch.nn import functional

from consilium.core.contracts import Batch
from consilium.data.batches.readers import NO_DRAW, ImageReader, tensors
from consilium.data.batches.rows import Items
from consilium.data.batches.transforms import DeviceTransform
from consilium.data.config import ImageConfig
from consilium.models.checkpoints.convert import convert
from consilium.models.checkpoints.find import find_model, find_text
from consilium.models.checkpoints.pretrained import SIDES, linear_layers
from consilium.models.config import TextConfig
from consilium.models.text import TextTower, build_text, build_tokenizer
from consilium.models.tokenizer import Padded
from consilium.models.vision import VisionConfig, build_vision
from consilium.session.origin import with_start
from tests.models.checkpoints import checkpoints, writers
from tests.models.texts import CAPTIONS
from tests.tasks.test_whole_models import experiment_of

CONTEXT = 32
LEVEL = 1 / 255


def read(folder: Path) -> tuple[TextTower, Padded]:
    """The text tower of a folder as a task builds it, and captions padded as it needs them."""
    kind: Any = "open_clip" if (folder / "open_clip_config.json").exists() else "hf"
    config = TextConfig(kind=kind, name=str(folder), context_length=CONTEXT)
    source = find_text(config)
    tokenizer = build_tokenizer(config, source=source)
    tower = build_text(config, tokenizer=tokenizer, source=source).eval()
    return tower, tokenizer.pad(tokenizer.encode(CAPTIONS))


def projected(folder: Path, features: dict[str, Tensor]) -> dict[str, Tensor]:
    """Features of both towers in the space of a model."""
    model = find_model(str(folder))
    layouts = {"image": model.layout.image_projection, "text": model.layout.text_projection}
    given = model.joint().projections
    return {side: linear_layers(layouts[side], given[side])(own) for side, own in features.items()}


# -- Texts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["siglip_hf", "siglip_open"])
@torch.no_grad()
def test_texts_of_siglip_are_padded_to_their_context_and_not_masked(form: str, tmp_path: Path) -> None:
    """Trap 2: the vector is that of the last place, which is padding, and a mask or a shorter text changes it."""
    written = writers.FORMS[form](tmp_path / "model")
    tower, padded = read(written.folder)
    assert padded.tokens_BT.shape[1] == CONTEXT
    ones, mask = torch.ones_like(padded.attention_BT), padded.attention_BT.clone()
    mask[:, 12:] = 0
    expected = written.texts(padded.tokens_BT, ones)
    for own in (padded.attention_BT, ones, mask):
        torch.testing.assert_close(tower(padded.tokens_BT, own), expected, rtol=0, atol=1e-5)
    if form == "siglip_hf":
        (shorter,) = written.texts(padded.tokens_BT[:1, :12], ones[:1, :12])
        assert float(functional.cosine_similarity(shorter, expected[0], dim=0)) < 0.999, "it would go unnoticed"


@pytest.mark.parametrize("form", ["clip_hf", "clip_hf_old", "clip_open", "clip_open_custom", "biomed_open"])
@torch.no_grad()
def test_texts_of_others_may_be_trimmed(form: str, tmp_path: Path) -> None:
    """Trap 3: open_clip takes full padding alone; a batch as long as its longest text gives the same vectors."""
    written = writers.FORMS[form](tmp_path / "model")
    tower, padded = read(written.folder)
    short = padded.tokens_BT.shape[1]
    assert short < CONTEXT
    full = [functional.pad(found, (0, CONTEXT - short)) for found in (padded.tokens_BT, padded.attention_BT)]
    for tokens, mask in ((padded.tokens_BT, padded.attention_BT), full):
        found = projected(written.folder, {"text": tower(tokens, mask)})["text"]
        torch.testing.assert_close(found, written.texts(*full), rtol=0, atol=1e-5)


@torch.no_grad()
def test_what_a_text_of_fundus_flair_loses_is_said(tmp_path: Path) -> None:
    """Trap 8: its own vector is a mean over three layers and over padding, so that it depends on the other texts.

    Ours is the mean of the last layer over the words of a text, which is another vector; the conversion says so.
    """
    parts, tokenizer = checkpoints.fundus_flair(), tmp_path / "tokenizer"
    writers.write_tokenizer(tokenizer)
    (tokenizer / "config.json").write_text(json.dumps({"model_type": "bert", **checkpoints.BERT}), encoding="utf-8")
    file = checkpoints.save_flat(tmp_path / "flair.pt", parts.state)
    done = convert(file, out=tmp_path / "out", tokenizer=str(tokenizer))
    assert "reads a text out of three layers at once, padding included" in done.notes[-1]
    assert "here its vector is the mean of the last layer without padding" in done.notes[-1]
    tower, padded = read(tmp_path / "out")
    tokens, mask = padded.tokens_BT, padded.attention_BT
    found = tower(tokens, mask)
    last = parts.text(input_ids=tokens, attention_mask=mask).last_hidden_state
    expected = torch.stack([own[kept.bool()].mean(0) for own, kept in zip(last, mask, strict=True)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    alone = int(mask[0].sum())
    torch.testing.assert_close(tower(tokens[:1, :alone], mask[:1, :alone])[0], found[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["clip_hf", "siglip_hf", "chinese_hf", "dual_hf"])
@torch.no_grad()
def test_embeddings_are_those_that_a_model_of_transformers_compares(form: str, tmp_path: Path) -> None:
    """Trap 4: some of its functions give objects that hold several vectors; those of its own loss are meant."""
    folder = writers.FORMS[form](tmp_path / "model").folder
    tower, padded = read(folder)
    images = torch.randn(len(CAPTIONS), 3, 32, 32)
    seen = build_vision(VisionConfig(kind="hf", name=str(folder)), image_size=(32, 32)).eval()(images)
    found = projected(folder, {"image": seen, "text": tower(padded.tokens_BT, padded.attention_BT)})
    mask = {} if form == "siglip_hf" else {"attention_mask": padded.attention_BT}
    own = transformers.AutoModel.from_pretrained(folder).eval()(pixel_values=images, input_ids=padded.tokens_BT, **mask)
    for side in SIDES:
        expected = getattr(own, f"{side}_embeds")
        torch.testing.assert_close(functional.normalize(found[side], dim=1), expected, rtol=0, atol=1e-5)


# -- Images -------------------------------------------------------------------------------------------------------


def picture(height: int, width: int) -> bytes:
    """Waves with noise upon them, as a PNG."""
    rows, columns = np.mgrid[:height, :width]
    waves = np.stack([127 + 100 * np.sin(columns / 9), 127 + 100 * np.cos(rows / 7), columns * 255 / width], axis=2)
    noise = np.random.default_rng(0).normal(0, 20, waves.shape)
    Image.fromarray((waves + noise).clip(0, 255).astype(np.uint8)).save(stream := io.BytesIO(), "PNG")
    return stream.getvalue()


def prepared(folder: Path, image: bytes, beside: Path) -> tuple[npt.NDArray[np.float32], ImageConfig]:
    """The pixels that a task which begins with a model is given of a picture, and how they were made."""
    config = with_start(experiment_of(beside, str(folder)))[0].data.image
    reader = ImageReader(Items([image]), image=config)
    views: Any = tensors(reader.collate([reader.read(0, NO_DRAW)], shared=False))
    rows_B = torch.arange(1)
    batch = DeviceTransform(config, augmentation=None, seed=0)(Batch(rows_B, rows_B, images=views), train=False)
    return batch.views.pixels[0, 0].numpy(), config


def assert_same_picture(ours: Any, theirs: Any, config: ImageConfig) -> None:
    """Within a level of 255; at the border that a crop makes it may be a few, since we cut before we resize."""
    levels = np.abs(np.asarray(ours) - np.asarray(theirs)) * np.array(config.std)[:, None, None] / LEVEL
    assert levels.shape == (3, 32, 32)
    assert levels.mean() < 0.2
    if config.fit == "crop":
        assert levels.max() < 10
        levels = levels[:, 3:-3, 3:-3]
    assert levels.max() < 1.1


SHOWN = {
    "crop": {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
    "stretch": {"size": {"height": 32, "width": 32}, "do_center_crop": False},
}


@pytest.mark.parametrize("processor", ["CLIPImageProcessor", "CLIPImageProcessorPil"])
@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("fit", SHOWN)
def test_pixels_are_those_of_the_processor_of_transformers(
    fit: str, resample: int, processor: str, tmp_path: Path
) -> None:
    """Trap 6: size, interpolation, crop, mean and deviation are those of preprocessor_config.json.

    The library's two processors differ from each other by a level.
    """
    folder = writers.clip_hf(tmp_path / "model").folder
    file = folder / "preprocessor_config.json"
    shown = {**json.loads(file.read_text(encoding="utf-8")), **SHOWN[fit], "resample": resample}
    file.write_text(json.dumps(shown), encoding="utf-8")
    own = getattr(transformers, processor).from_pretrained(folder)
    for size in ((64, 96), (96, 64)):
        ours, config = prepared(folder, image := picture(*size), tmp_path)
        assert (config.fit, config.interpolation) == (fit, {2: "bilinear", 3: "bicubic"}[resample])
        theirs = own(images=[Image.open(io.BytesIO(image))], return_tensors="np")["pixel_values"][0]
        assert_same_picture(ours, theirs, config)


@pytest.mark.parametrize("resize", ["shortest", "squash"])
def test_pixels_are_those_of_open_clip(resize: str, tmp_path: Path) -> None:
    folder = writers.clip_open(tmp_path / "model").folder
    file = folder / "open_clip_config.json"
    described = json.loads(file.read_text(encoding="utf-8"))
    described["preprocess_cfg"]["resize_mode"] = resize
    file.write_text(json.dumps(described), encoding="utf-8")
    ours, config = prepared(folder, image := picture(64, 96), tmp_path)
    _, prepare = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    assert_same_picture(ours, prepare(Image.open(io.BytesIO(image))).numpy(), config)
