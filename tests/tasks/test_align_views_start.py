"""What a task of two eyes begins with: RET-CLIP with all its heads, Chinese-CLIP, CLIP, a BERT; told in a table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

import consilium
from consilium.core.config import build
from consilium.core.contracts import Batch, Texts, Views
from consilium.core.errors import ConfigError, WeightsError
from consilium.data.batches.rows import Query
from consilium.experiment import Experiment
from consilium.models.checkpoints.convert import convert
from consilium.session import train
from consilium.tasks.align.task import Align
from consilium.tasks.align.views import AlignViews
from tests.models.checkpoints import checkpoints
from tests.models.checkpoints.checkpoints import converted_chinese_clip, save_flat, save_training
from tests.models.checkpoints.writers import clip_hf, write_tokenizer
from tests.models.texts import CAPTIONS, write_encoder
from tests.tasks.test_align_contract import square
from tests.tasks.test_align_views_trained import EYES, write_eyes
from tests.tasks.test_whole_models import built
from tests.tiny import Recorder

TWO = {"names": ["left", "right"]}


def experiment_of(folder: Path, **task: Any) -> Experiment:
    source = {"kind": "csv", "name": "eyes", "path": str(write_eyes(folder / "eyes"))}
    tree = {
        **EYES,
        "task": {"kind": "align", **task},
        "data": {
            "sources": [{**source, "columns": {"image": ["left", "right"]}}],
            "store": {"root": str(folder / "stores")},
            "loader": EYES["data"]["loader"],
        },
        "output": {"root": str(folder / "runs")},
    }
    return build(Experiment, tree, origin="tests")


def converted(folder: Path, *, name: str = "retclip", training: bool = False) -> tuple[Path, dict[str, Tensor], Any]:
    """A folder that a checkpoint of RET-CLIP was converted to, its tensors, and its text tower."""
    parts, tokenizer = checkpoints.ret_clip(), folder / "tokenizer"
    if not tokenizer.is_dir():
        write_tokenizer(tokenizer)
        described = {"model_type": "bert", **checkpoints.BERT}
        (tokenizer / "config.json").write_text(json.dumps(described), encoding="utf-8")
    parts.state["logit_scale_left"] = torch.tensor(3.0)
    save = save_training if training else save_flat
    convert(save(folder / f"{name}.pt", parts.state), out=folder / name, tokenizer=str(tokenizer))
    return folder / name, parts.state, parts


def begun(task: Align) -> dict[str, str]:
    return {row["part"]: row["begins"] for row in task.begun}


def seen(task: Align, size: tuple[int, int]) -> tuple[Batch, dict[str, Tensor]]:
    """A batch of pairs of eyes, and what the task makes of it."""
    random = torch.Generator().manual_seed(4)
    pixels_BVCHW = torch.randn(len(CAPTIONS), len(task.views) or 1, 3, *size, generator=random)
    padded = task.tokenizer.pad(task.tokenizer.encode(CAPTIONS))
    there_B = torch.ones(len(CAPTIONS), dtype=torch.bool)
    texts = Texts(there_B, there_B.long(), padded.tokens_BT, padded.attention_BT)
    there_BV = torch.ones(pixels_BVCHW.shape[:2], dtype=torch.bool)
    rows_B = torch.arange(len(CAPTIONS))
    batch = Batch(rows_B, rows_B, images=Views(there_BV, pixels_BVCHW), texts=texts)
    with torch.no_grad():
        arrays = dict(task.predict(batch).arrays)
        for space, own in zip(task.spaces, task.each_text(task.text_features(texts)), strict=True):
            arrays[f"{space}text_embeddings"] = own
    return batch, arrays


def theirs(batch: Batch, state: dict[str, Tensor], parts: Any) -> dict[str, Tensor]:
    """What RET-CLIP itself makes of the same batch."""
    assert batch.texts is not None
    with torch.no_grad():
        views = [parts.image(pixels) for pixels in batch.views.pixels.unbind(1)]
        words = parts.text(input_ids=batch.texts.tokens_BT, attention_mask=batch.texts.attention_BT)
        text = words.last_hidden_state[:, 0]
        found = {"image_embeddings": views[0]}
        if len(views) == 2:
            found["image_embeddings"] = torch.cat(views, 1) @ state["global_feature_mapping.weight"].T
            for name, view in zip(("left", "right"), views, strict=True):
                found[f"{name}_image_embeddings"] = view @ state[f"{name}_feature_mapping.weight"].T
        for space, head in (("", "text_projection"), *((f"{n}_", f"text_projection_{n}") for n in ("left", "right"))):
            inner = (text @ state[f"{head}.0.weight"].T + state[f"{head}.0.bias"]).relu()
            found[f"{space}text_embeddings"] = inner @ state[f"{head}.2.weight"].T + state[f"{head}.2.bias"]
        return {name: functional.normalize(own, dim=1) for name, own in found.items()}


@pytest.mark.parametrize("training", [False, True], ids=["released", "epoch_latest"])
def test_ret_clip_is_taken_over_with_all_its_heads(training: bool, tmp_path: Path) -> None:
    folder, state, parts = converted(tmp_path, training=training)
    task, started, _ = built(experiment_of(tmp_path, model=str(folder), views=TWO))
    assert isinstance(task, AlignViews)
    batch, found = seen(task, started.data.image.size)
    expected = theirs(batch, state, parts)
    assert len(expected) == 6
    for name, own in expected.items():
        torch.testing.assert_close(found[name], own, rtol=0, atol=1e-5, msg=name)
    scales = [float(loss.scale.detach()) for loss in task.losses]
    assert scales == pytest.approx([90, torch.tensor(3.0).exp().item(), 90], rel=1e-5)
    told = begun(task)
    assert not any("random" in begins for begins in told.values())
    assert "left unused" not in told
    assert told["image map of the case"] == "loaded, renamed: global_feature_mapping."
    assert told["text head of right"] == "loaded, renamed: text_projection_right."
    table = "\n".join(task.notes())
    assert "the task is built with these weights" in table
    assert started.task.embedding_size == checkpoints.EMBED  # type: ignore[attr-defined]


def test_monocular_takes_one_level_of_ret_clip(tmp_path: Path) -> None:
    folder, state, parts = converted(tmp_path)
    task, started, _ = built(experiment_of(tmp_path, model=str(folder), views={"monocular": True}))
    batch, found = seen(task, started.data.image.size)
    expected = theirs(batch, state, parts)
    for name in ("image_embeddings", "text_embeddings"):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5, msg=name)
    unused = begun(task)["left unused"]
    for name in ("global_feature_mapping", "left_feature_mapping", "text_projection_right", "logit_scale_left"):
        assert name in unused


@pytest.mark.parametrize("form", [converted_chinese_clip, clip_hf], ids=["Chinese-CLIP", "CLIP"])
def test_models_of_one_picture_bring_their_towers(form: Any, tmp_path: Path) -> None:
    written = form(tmp_path / "model")
    task, started, _ = built(experiment_of(tmp_path, model=str(written.folder), views=TWO))
    batch, found = seen(task, started.data.image.size)
    with torch.no_grad():
        left = functional.normalize(written.images(batch.views.pixels[:, 0]), dim=1)
    torch.testing.assert_close(found["tower_image_embeddings"][:, 0], left, rtol=0, atol=1e-5)
    assert [float(loss.scale.detach()) for loss in task.losses] == pytest.approx([written.scale] * 3)
    told = begun(task)
    assert told["image projection"] == "loaded: its projection"
    assert told["left unused"] == "of the checkpoint: its text projection"
    assert {told[f"text head of {name}"] for name in ("the case", "left", "right")} == {"random"}


def test_towers_one_by_one(tmp_path: Path) -> None:
    """The image tower of a RET-CLIP beside a BERT: no heads come along, and the table says so."""
    folder, _, _ = converted(tmp_path)
    bert = write_encoder(tmp_path / "bert")
    towers = {"vision": {"kind": "open_clip", "name": str(folder)}, "text": {"name": str(bert), "context_length": 16}}
    task, _, _ = built(experiment_of(tmp_path, views=TWO, embedding_size=16, **towers))
    told = begun(task)
    assert told["image tower"] == f"loaded: {folder}"
    assert told["text tower"] == f"loaded: {bert}"
    assert told["image projection"] == "random"
    assert told["image map of left"] == "random"


def test_a_training_goes_on_from_ret_clip_and_its_bundle_needs_it_no_more(tmp_path: Path) -> None:
    folder, _, _ = converted(tmp_path)
    reporter = Recorder()
    result = train(experiment_of(tmp_path, model=str(folder), views=TWO), reporter=reporter)
    assert result is not None
    shutil.rmtree(folder)
    model = consilium.load(result.folder, device="cpu")
    eyes = {"left": square("red"), "right": square("blue")}
    (answer,) = model.predict([Query(eyes, "Left red, right blue")])
    assert len(answer["image_embedding"]) == len(answer["left_text_embedding"]) == checkpoints.EMBED
    assert any("loaded, renamed: left_feature_mapping." in line for line in reporter.lines)


def test_ret_clip_is_judged_as_it_came_and_random_heads_are_not(tmp_path: Path) -> None:
    folder, _, _ = converted(tmp_path)

    def judged(model: Path) -> Any:
        tree = experiment_of(tmp_path, model=str(model), views=TWO).model_dump(mode="json", exclude_unset=True)
        config = tmp_path / f"{model.name}.yaml"
        config.write_text(json.dumps({**tree, "zero_shot": True}), encoding="utf-8")
        return consilium.evaluate(config, device="cpu", quiet=True)

    assert judged(folder).tables["retrieval_views"]
    with pytest.raises(ConfigError, match=r"it has no heads for task.views, which would be random"):
        judged(converted_chinese_clip(tmp_path / "model").folder)


# -- What does not fit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [["right", "left"], ["od", "os"]])
def test_heads_of_other_views(names: list[str], tmp_path: Path) -> None:
    folder, _, _ = converted(tmp_path)
    with pytest.raises(ConfigError, match=rf"names are {', '.join(names)}, but .* has heads for left, right, in this"):
        built(experiment_of(tmp_path, model=str(folder), views={"names": names}))


def test_heads_that_are_damaged(tmp_path: Path) -> None:
    folder, _, _ = converted(tmp_path)
    file = folder / "heads.safetensors"
    whole = load_file(file)
    save_file({**whole, "left_feature_mapping.weight": torch.zeros(3, 3)}, file)
    experiment = experiment_of(tmp_path, model=str(folder), views=TWO)
    with pytest.raises(WeightsError, match=r"image map of left .* does not fit: it has {'weight': \(3, 3\)}, and"):
        built(experiment)
    save_file({name: own for name, own in whole.items() if name != "logit_scale_right"}, file)
    with pytest.raises(WeightsError, match=r"lack logit_scale_right; convert its checkpoint again"):
        built(experiment)
    file.unlink()
    with pytest.raises(WeightsError, match=r"heads\.safetensors"):
        built(experiment)


def test_a_checkpoint_of_the_wrong_depth(tmp_path: Path) -> None:
    """Its file holds another number of blocks than the model that the config names."""
    folder, _, _ = converted(tmp_path)
    other = checkpoints.chinese_clip(layers=3)
    deep = save_training(tmp_path / "deep.pt", other.state)
    convert(deep, out=tmp_path / "deep", tokenizer=str(tmp_path / "tokenizer"))
    weights = str(tmp_path / "deep" / "open_clip_model.safetensors")
    model = {"name": str(folder), "pretrained": weights}
    with pytest.raises(
        WeightsError, match=r"deep/open_clip_model.* they have 3 blocks, and the model 2; it is another"
    ):
        built(experiment_of(tmp_path, model=model, views=TWO))
