"""Whole pretrained models in every form that is read: the same embeddings as their own library, and trained on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

import consilium
from consilium.core.config import build
from consilium.core.contracts import Batch, Texts, Views
from consilium.core.errors import ConfigError, WeightsError
from consilium.data.batches.rows import Query
from consilium.experiment import Experiment
from consilium.session import train
from consilium.session.origin import with_start
from consilium.tasks.align.family import FAMILY
from consilium.tasks.align.knowledge import AlignKnowledge
from consilium.tasks.align.task import Align
from tests.models.checkpoints.checkpoints import converted_chinese_clip
from tests.models.checkpoints.writers import FORMS, Written, clip_hf, clip_open, siglip_hf
from tests.models.texts import CAPTIONS
from tests.tasks.test_align_contract import TREE, square, write
from tests.tiny import Recorder

CONTEXT = 32


def experiment_of(folder: Path, model: Any, **task: Any) -> Experiment:
    tree = {
        **TREE,
        "task": {"kind": "align", "model": model, **task},
        "data": {
            "sources": [{"kind": "jsonl", "name": "pairs", "path": str(write(folder / "pairs"))}],
            "store": {"root": str(folder / "stores")},
            "loader": TREE["data"]["loader"],
        },
        "output": {"root": str(folder / "runs")},
    }
    return build(Experiment, tree, origin="tests")


def built(experiment: Experiment) -> tuple[Align, Experiment, AlignKnowledge]:
    """The task of an experiment, as a training makes it."""
    from consilium.tasks.align.family import _tokenizer

    started, _ = with_start(experiment)
    section: Any = started.task
    tokenizer = _tokenizer(section.text, section.model, ())
    knowledge = AlignKnowledge(training_cases=1, tokenizer=tokenizer.definition)
    task = FAMILY.build(section, knowledge, image=started.data.image, members={}, weights=True)
    return task.eval(), started, knowledge


def embedded(task: Align, pixels_BCHW: Tensor, tokens_BT: Tensor, attention_BT: Tensor) -> tuple[Tensor, Tensor]:
    """What a task makes of pixels and of tokens."""
    there_B = torch.ones(len(pixels_BCHW), dtype=torch.bool)
    texts = Texts(tokens_BT=tokens_BT, attention_BT=attention_BT, there_B=there_B, same_B=there_B.long())
    images = Views(there_B[:, None], pixels_BCHW[:, None])
    rows_B = torch.arange(len(there_B))
    batch = Batch(rows_B, rows_B, images=images, texts=texts)
    with torch.no_grad():
        images_BF, texts_BF = task.image_features(batch), task.text_features(texts)
        return task.embed_images(batch, images_BF), task.embed_texts(batch, texts_BF)


READ = {**FORMS, "chinese_clip_checkpoint": converted_chinese_clip}


@pytest.mark.parametrize("form", READ)
def test_embeddings_are_those_of_the_model_s_own_library(form: str, tmp_path: Path) -> None:
    written = READ[form](tmp_path / "model")
    task, started, knowledge = built(experiment_of(tmp_path, str(written.folder)))
    pixels = torch.randn(len(CAPTIONS), 3, *started.data.image.size)
    padded = task.tokenizer.pad(task.tokenizer.encode(CAPTIONS))
    short = padded.tokens_BT.shape[1]
    full = [functional.pad(found, (0, CONTEXT - short)) for found in (padded.tokens_BT, padded.attention_BT)]
    with torch.no_grad():
        expected = [functional.normalize(found, dim=1) for found in (written.images(pixels), written.texts(*full))]
    # Trap 2; all others may be trimmed (trap 3).
    assert (short == CONTEXT) == form.startswith(("siglip", "mobileclip", "clipa"))
    for tokens_BT, attention_BT in ((padded.tokens_BT, padded.attention_BT), full):
        for found, own in zip(embedded(task, pixels, tokens_BT, attention_BT), expected, strict=True):
            torch.testing.assert_close(found, own, rtol=0, atol=1e-5)
    assert float(task.loss.scale.detach()) == pytest.approx(written.scale)
    if written.bias is not None:
        assert float(task.loss.bias) == pytest.approx(written.bias)

    settled = FAMILY.settle(started.task, task, knowledge, {}).knowledge
    again = FAMILY.build(started.task, settled, image=started.data.image, members={}, weights=False).eval()
    again.load_state_dict(task.state_dict())
    for found, own in zip(embedded(again, pixels, *full), embedded(task, pixels, *full), strict=True):
        assert torch.equal(found, own)


@pytest.mark.parametrize("write_model", [clip_open, siglip_hf], ids=["clip", "siglip"])
def test_a_model_trains_on_and_its_bundle_needs_it_no_more(write_model: Any, tmp_path: Path) -> None:
    written: Written = write_model(tmp_path / "model")
    result = train(experiment_of(tmp_path, str(written.folder)), reporter=Recorder())
    assert result is not None
    for file in written.folder.iterdir():
        file.unlink()
    model = consilium.load(result.folder, device="cpu")
    section: Any = model.manifest.task
    assert section.embedding_size == (24 if write_model is clip_open else 32)
    assert section.loss.kind == ("softmax" if write_model is clip_open else "sigmoid")
    assert section.text.context_length == CONTEXT
    image = model.manifest.image
    assert (image.size, image.mean, image.std) == ((32, 32), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    assert (image.fit, image.interpolation) == (
        ("crop", "bicubic") if write_model is clip_open else ("stretch", "bilinear")
    )
    (answer,) = model.predict([Query(square("red"), "A square that is red")])
    assert len(answer["image_embedding"]) == len(answer["text_embedding"]) == section.embedding_size
    report = (result.folder / "report.html").read_text(encoding="utf-8")
    assert str(written.folder) in report


def test_chunks_of_texts_keep_the_padding_that_siglip_reads(tmp_path: Path) -> None:
    written = siglip_hf(tmp_path / "model")
    task, started, _ = built(experiment_of(tmp_path, str(written.folder)))
    pixels = torch.randn(len(CAPTIONS), 3, *started.data.image.size)
    padded = task.tokenizer.pad(task.tokenizer.encode(CAPTIONS))
    whole = embedded(task, pixels, padded.tokens_BT, padded.attention_BT)
    task.chunk = 2
    for found, expected in zip(embedded(task, pixels, padded.tokens_BT, padded.attention_BT), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_what_the_config_says_stands(tmp_path: Path) -> None:
    written = clip_open(tmp_path / "model")
    own = {"loss": {"kind": "sigmoid", "temperature": 0.5}, "text": {"context_length": 12}}
    experiment = experiment_of(tmp_path, str(written.folder), **own)
    tree = experiment.model_dump(mode="json", exclude_unset=True)
    tree["data"]["image"] = {"mean": [0.1, 0.2, 0.3], "size": [48, 48]}
    task, started, _ = built(build(Experiment, tree, origin="tests"))
    assert started.data.image.mean == (0.1, 0.2, 0.3)
    assert started.data.image.std == (0.2, 0.3, 0.4)
    assert started.data.image.size == (48, 48)
    assert float(task.loss.scale) == pytest.approx(2.0)
    assert task.tokenizer.context_length == 12
    assert with_start(started)[0] == started


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ({"vision": {"name": "resnet18"}}, "vision.name cannot be given as well"),
        ({"text": {"pooling": "mean"}, "projection": {"kind": "mlp"}}, "projection, text.pooling cannot be given"),
    ],
)
def test_a_whole_model_leaves_no_choice_of_towers(task: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        experiment_of(tmp_path, "model", **task)


def test_another_width_than_the_model_s_is_refused(tmp_path: Path) -> None:
    written = clip_hf(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"embedding_size is 16, but .* was trained with 24; leave it out"):
        with_start(experiment_of(tmp_path, str(written.folder), embedding_size=16))


def test_siglip_reads_all_of_its_positions(tmp_path: Path) -> None:
    written = siglip_hf(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"context_length is 12, but .* at the last of its 32 positions"):
        built(experiment_of(tmp_path, str(written.folder), text={"context_length": 12}))


@pytest.mark.parametrize("write_model", [clip_open, siglip_hf], ids=["clip", "siglip"])
def test_a_whole_model_reads_longer_texts_where_asked(write_model: Any, tmp_path: Path) -> None:
    written: Written = write_model(tmp_path / "model")
    text = {"context_length": 64, "interpolate_positions": True}
    task, started, knowledge = built(experiment_of(tmp_path, str(written.folder), text=text))
    padded = task.tokenizer.pad(task.tokenizer.encode([" ".join(CAPTIONS * 2)]))
    assert CONTEXT < padded.tokens_BT.shape[1] <= 64
    pixels = torch.randn(1, 3, *started.data.image.size)
    own = embedded(task, pixels, padded.tokens_BT, padded.attention_BT)
    settled = FAMILY.settle(started.task, task, knowledge, {}).knowledge
    again = FAMILY.build(started.task, settled, image=started.data.image, members={}, weights=False).eval()
    again.load_state_dict(task.state_dict())
    for found, expected in zip(embedded(again, pixels, padded.tokens_BT, padded.attention_BT), own, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_the_weights_may_lie_elsewhere(tmp_path: Path) -> None:
    written, other = clip_open(tmp_path / "model"), clip_open(tmp_path / "other")
    saved = tmp_path / "epoch_3.pt"
    tensors = {f"module.{name}": 2 * tensor for name, tensor in _weights(other.folder).items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": tensors, "optimizer": {"state": {}}}, saved)
    task, _, _ = built(experiment_of(tmp_path, {"name": str(written.folder), "pretrained": str(saved)}))
    own = _weights(other.folder)["visual.proj"]
    torch.testing.assert_close(task.image_projection.layers[0].weight, 2 * own.T)
    with pytest.raises(WeightsError, match=r"weights file .*missing.pt does not exist"):
        built(experiment_of(tmp_path, {"name": str(written.folder), "pretrained": str(tmp_path / "missing.pt")}))


def _weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "open_clip_model.safetensors")
