"""Converted configs train: two steps each, on tiny models in the form that they name."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
import yaml

import consilium
from consilium.converting import Conversion, convert, report, yaml_of
from consilium.core.errors import ConfigError
from consilium.data.store.export_from_tsv import export_tsv
from consilium.experiment import Experiment
from consilium.session import train
from tests.conftest import write_images
from tests.converting.test_converting import EXAMPLES
from tests.data.cases.harmonised import rows_of, write_dataset
from tests.models.checkpoints.writers import clip_hf
from tests.models.texts import write_encoder
from tests.tasks.test_align_contract import write
from tests.tiny import Recorder

SHORT = ["trainer.max_steps=2", "trainer.device=cpu", "trainer.precision=fp32", "data.loader.workers=0"]
_VISION = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 2}


def vision(folder: Path) -> str:
    """The image tower of a CLIP, as its hub holds it."""
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(**_VISION, image_size=32, patch_size=8)
    transformers.CLIPVisionModel(config).save_pretrained(folder)
    shown = {"image_mean": [0.5] * 3, "image_std": [0.3] * 3, "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(shown), encoding="utf-8")
    return str(folder)


def theirs(folder: Path, **given: Any) -> Path:
    """A file for train_clip.py over two tables of captioned squares of which 64 rows train."""
    sources = [
        {name: {"dataset_name": str(write(folder / name)), "caption_column": "text", "weight": weight}}
        for name, weight in (("near", 3), ("far", 1))
    ]
    tree = {
        "output_dir": str(folder / "runs" / "squares"),
        "vision_model_name": vision(folder / "vision"),
        "text_model_name": str(write_encoder(folder / "text")),
        "dataset_configs": sources,
        "cache_dir": str(folder / "stores"),
        "per_device_train_batch_size": 8,
        "max_seq_length": 32,
        "num_train_epochs": 3,
        "dataloader_drop_last": True,
    }
    path = folder / "theirs.yaml"
    path.write_text(yaml.safe_dump({**tree, **given}), encoding="utf-8")
    return path


def converted(*words: str) -> Conversion:
    return convert(words, reporter=Recorder())


def trained(found: Conversion, folder: Path, *overrides: str) -> consilium.Predictor:
    """The model that a converted config makes in two steps."""
    path = folder / "ours.yaml"
    path.write_text(yaml_of(found), encoding="utf-8")
    result = train(Experiment.load(path, overrides=[*SHORT, *overrides]), reporter=Recorder())
    assert result is not None
    return consilium.load(result.folder, device="cpu")


@pytest.mark.parametrize("warmup", [2000, 14])
def test_a_warm_up_that_is_too_long_becomes_legal_and_the_training_runs(warmup: int, tmp_path: Path) -> None:
    """The steps are those that the training counts itself."""
    path = theirs(tmp_path, warmup_steps=warmup)
    found = converted("train_clip.py", str(path))
    assert f"  # was {warmup} steps; the whole training has 14, so that the rate" in yaml_of(found)
    assert found.tree["schedule"]["warmup"] == "10 %"
    changed = report(found, config="ours.yaml").partition("changed:\n")[2]
    assert changed.startswith(f"  warmup_steps: {warmup} -> schedule.warmup: 10 %: was {warmup} steps;")
    with pytest.raises(ConfigError, match="the whole training has only 14"):
        trained(found, tmp_path, f"schedule.warmup={warmup} steps", "trainer.max_steps=null")
    model = trained(found, tmp_path)
    assert model.manifest.task.vision.kind == "hf"
    assert model.manifest.image.mean == (0.5, 0.5, 0.5)


def test_a_warm_up_that_ends_in_time_stays(tmp_path: Path) -> None:
    found = converted(str(theirs(tmp_path, warmup_steps=13)))
    assert found.tree["schedule"]["warmup"] == "13 steps"
    assert found.comments == {}


def test_steps_that_take_more_epochs_get_them(tmp_path: Path) -> None:
    found = converted(str(theirs(tmp_path, max_steps=50, warmup_steps=40)))
    assert found.tree["trainer"]["max_epochs"] == 10
    assert found.tree["trainer"]["max_steps"] == 50
    assert found.tree["schedule"]["warmup"] == "40 steps"
    assert "  # 50 steps take so many epochs of 5 steps\n  max_epochs: 10\n" in yaml_of(found)


def test_data_that_cannot_be_counted_is_said(tmp_path: Path) -> None:
    path = theirs(tmp_path, warmup_steps=2000)
    (tmp_path / "near" / "pairs.jsonl").write_text("no json\n", encoding="utf-8")
    found = converted(str(path))
    assert found.tree["schedule"]["warmup"] == "2000 steps"
    assert "not compared with the length of the training" in report(found, config="ours.yaml")
    share = report(converted(str(theirs(tmp_path, warmup_ratio=0.1, max_steps=9))), config="ours.yaml")
    assert "  warmup_ratio: 0.1 -> schedule.warmup: 10 %\n" in share


def test_a_whole_model(tmp_path: Path) -> None:
    written = clip_hf(tmp_path / "model")
    path = theirs(tmp_path, gradient_checkpointing=True, lr_scheduler_type="cosine", warmup_ratio=0.5)
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    tree = {key: value for key, value in tree.items() if key not in ("vision_model_name", "text_model_name")}
    path.write_text(yaml.safe_dump({**tree, "model_name_or_path": str(written.folder)}), encoding="utf-8")
    assert trained(converted(str(path)), tmp_path).manifest.task.model is not None


def test_the_router(tmp_path: Path) -> None:
    """Folders are {train,test}/{modality}/{category}; the modality is the label."""
    images = tmp_path / "images"
    for modality in ("ct", "mri"):
        for split in ("train", "test"):
            write_images(tmp_path / modality, splits={split: 12})
            (images / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / modality / split).rename(images / split / modality)
    call = ["image_router_train.py", f"--data_dir={images}", "--resnet_size=18", "--batch_size=8", "--num_runs=1"]
    found = converted(*call, f"--output_dir={tmp_path / 'runs' / 'router'}")
    small = ["task.vision.pretrained=false", "data.image.size=[32, 32]", f"data.store.root={tmp_path / 'stores'}"]
    model = trained(found, tmp_path, *small)
    assert model.task.labels.names == ("ct", "mri")


def eyes(folder: Path, split: str, patients: range) -> None:
    """Pairs of eyes as RET-CLIP has them, and their texts."""
    pictures = write(folder / "squares").parent
    rows, texts = [], []
    for number in patients:
        both = [base64.b64encode((pictures / f"{number + side}.png").read_bytes()).decode() for side in (0, 1)]
        rows.append("\t".join([str(number), *both]))
        texts.append(json.dumps({"text_id": number, "text": f"An eye of patient {number}", "image_ids": [number]}))
    (folder / f"{split}_imgs.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / f"{split}_texts.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")


def test_the_call_of_ret_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    eyes(tmp_path, "train", range(30))
    eyes(tmp_path, "test", range(30, 40))
    for split in ("train", "test"):
        export_tsv(f"{tmp_path}/{split}_imgs.tsv", tmp_path / "lmdb" / split)
    text = write_encoder(tmp_path / "text")
    call = f"main.py --train-data={tmp_path}/lmdb/train --val-data={tmp_path}/lmdb/test --batch-size=8 --warmup=999"
    found = converted(*call.split(), f"--logs={tmp_path / 'logs'}", "--max-epochs=2", "--context-length=32")
    assert found.tree["schedule"]["warmup"] == "10 %"
    small = [
        "task.vision={name: test_vit, pretrained: false}",
        f"task.text.name={text}",
        "data.image={size: [32, 32]}",
    ]
    model = trained(found, tmp_path, *small)
    assert model.manifest.metrics["test"]["mean_recall"] is not None


@pytest.mark.parametrize("embeddings", ["texts.parquet", None])
def test_the_image_and_text_workflow(embeddings: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole example on a small dataset and a small tower: vectors that are there, or an encoder."""
    rows = rows_of()
    folder = write_dataset(tmp_path / "root", rows)
    vectors = {row["image_id"]: [float(number), 1.0] for number, row in enumerate(rows) if row["text_desc"]}
    (folder / "embeddings").mkdir()
    table = pa.table({"id": list(vectors), "vector": list(vectors.values())})
    pq.write_table(table, folder / "embeddings" / "texts.parquet")
    monkeypatch.setenv("CONSILIUM_DATA", str(tmp_path / "root"))
    tree = yaml.safe_load((EXAMPLES / "image_text.yaml").read_text(encoding="utf-8"))
    tree["data"] |= {"datasets": ["isic", "derm1m"], "derm1m_sources": ["edu"], "min_samples_per_label": 4}
    tree["text_embedding"] |= {"model_name": str(write_encoder(tmp_path / "text")), "embedding_filename": embeddings}
    tree["output"] |= {"save_dir": str(tmp_path / "runs"), "wandb_project": None}
    tree["image"]["img_size"], tree["text_embedding"]["max_length"] = [32, 32], 32
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    small = ["task.vision={name: test_resnet, pretrained: false}", f"data.store.root={tmp_path / 'stores'}"]
    model = trained(converted("python", "main.py", "--config", str(path)), tmp_path, *small)
    assert model.task.labels.names == ("melanoma", "nevus")
    assert model.manifest.task.text.kind == ("hf" if embeddings is None else "vectors")
    (answer,) = model.predict([consilium.Query(str(folder / "imgs" / "1.png"))])
    assert answer["modalities"] == ["image"]
