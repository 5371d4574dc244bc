"""Exporting a bundle: its folder, its card, how images are prepared there, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
import transformers
import yaml
from PIL import Image

from consilium.bundle import save_bundle
from consilium.core.errors import ExportError, MissingExtraError
from consilium.data.batches.transforms import DeviceTransform
from consilium.data.config import ImageConfig
from consilium.data.images.reading import load_view
from consilium.evaluation.config import AveragingConfig
from consilium.export import checks
from consilium.export.preprocessing import differences, for_open_clip, for_timm, for_transformers
from consilium.export.run import export
from consilium.manifest import new_manifest, read_manifest
from consilium.predictor import Predictor
from tests.export.models import IMAGE, TREE, classifier, towers
from tests.tiny import Recorder

Bundles = Callable[[str], Path]
FLAT = "classifier with a tower of timm"
LEVEL = 1 / 255 / min(IMAGE["std"])  # one level of 255 after normalisation


@pytest.mark.parametrize("form", ["timm", "onnx"])
def test_a_folder_that_is_used_stays_as_it_is(form: str, bundles: Bundles, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match="not empty; give a new or empty folder"):
        export(bundles(FLAT), to=form, out=tmp_path, reporter=Recorder())  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=r"notes\.txt, a file"):
        export(bundles(FLAT), to=form, out=tmp_path / "notes.txt", reporter=Recorder())  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_what_answers_otherwise_is_not_left(bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CLOSE", 0.0)
    with pytest.raises(ExportError, match=r"AutoModel|TimmWrapper.* gives other features outputs than the bundle"):
        export(bundles(FLAT), to="hf", out=tmp_path / "out", reporter=Recorder())
    assert not (tmp_path / "out").exists()


def test_what_another_library_cannot_load_is_no_traceback(
    bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.AutoModelForImageClassification, "from_pretrained", lambda *_, **__: [][0])
    with pytest.raises(ExportError, match=r"cannot be written or loaded there \(IndexError"):
        export(bundles(FLAT), to="hf", out=tmp_path / "out", reporter=Recorder())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("form", "package", "model", "extra"),
    [
        ("open_clip", "open_clip", "tower of timm, texts by `cls` or `mean`", "clip"),
        ("onnx", "onnxruntime", FLAT, "onnx"),
    ],
)
def test_a_missing_extra_is_named(
    form: str, package: str, model: str, extra: str, bundles: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bundles(model)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"consilium\[{extra}\]"):
        export(folder, to=form, out=tmp_path / "out", reporter=Recorder())  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_a_cascade_leaves_network_by_network(tmp_path: Path) -> None:
    node = classifier(labels=TREE, tree={"head": "joint"}, temperatures={})(tmp_path / "node")
    own = classifier(labels=("ct", "mri"), temperatures={})(tmp_path / "flat")
    whole = tmp_path / "cascade"
    (whole / "nodes").mkdir(parents=True)
    own.rename(whole / "nodes/root")
    classifier(labels=("mri.t1", "mri.t2"), temperatures={})(tmp_path / "inner").rename(whole / "nodes/mri")
    tree = read_manifest(node)
    task = tree.task.model_copy(update={"tree": tree.task.tree.model_copy(update={"head": "cascade"})})  # type: ignore[union-attr]
    knowledge = Predictor.load(node, device="cpu").knowledge
    manifest = new_manifest(
        task, knowledge, name="cascade", image=tree.image, looks=AveragingConfig(), seed=0, data_fingerprint="0",
        metrics={}, licenses=[],
    )  # fmt: skip
    save_bundle(whole, manifest=manifest, task=torch.nn.Identity(), members=["nodes/root", "nodes/mri"])  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=r"made of several bundles.*cascade/nodes/root"):
        export(whole, to="onnx", out=tmp_path / "out", reporter=Recorder())
    assert export(whole / "nodes/root", to="timm", out=tmp_path / "out", reporter=Recorder()).kind == "classifier"


def test_a_tower_of_timm_with_two_classifiers_leaves_without(tmp_path: Path) -> None:
    folder = classifier(vision="deit_tiny_distilled_patch16_224")(tmp_path)
    with pytest.raises(ExportError, match=r"no single layer that classifies, but \('head', 'head_dist'\)"):
        export(folder, to="timm", out=tmp_path / "out", reporter=Recorder())


def test_card_and_licence(tmp_path: Path) -> None:
    folder = classifier()(tmp_path)
    (folder / "MODEL_CARD.md").write_text(
        "---\nlicense: x\n---\n\n# Own title\n\n## Use\n\nold\n\n## Limits\n\n- few\n"
    )
    reporter = Recorder()
    export(folder, to="timm", out=tmp_path / "out", reporter=reporter)
    _, front, text = (tmp_path / "out/README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["medical-imaging", "consilium"],
        "license": "apache-2.0",
    }
    assert "# Own title" in text
    assert "- few" in text
    assert "as before" not in text
    assert 'timm.create_model("local-dir:FOLDER", pretrained=True)' in text
    assert any("timm.create_model: the outputs of the bundle within" in line for line in reporter.lines)


def test_answers_that_a_form_cannot_give_are_described(bundles: Bundles, tmp_path: Path) -> None:
    export(bundles(FLAT), to="safetensors", out=tmp_path / "out", reporter=Recorder())
    answers = json.loads((tmp_path / "out/model.json").read_text())["answers"]
    assert answers["thresholds_by_level"] == [0.4]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_pixels_are_the_same_from_the_same_file(fit: str, interpolation: str, tmp_path: Path) -> None:
    """Within a level of 255, or what differs is said."""
    image = ImageConfig.model_validate({**IMAGE, "size": (40, 40), "fit": fit, "interpolation": interpolation})
    waves = np.add.outer(np.arange(90) * 2, np.arange(130)) % 256
    picture = Image.fromarray(np.stack([waves, waves[::-1], waves[:, ::-1]], axis=2).astype(np.uint8))
    picture.save(tmp_path / "a.png")
    seen_HWC = load_view((tmp_path / "a.png").read_bytes(), name="a.png", image=image, box=None)
    own = torch.tensor((seen_HWC / 255 - np.array(image.mean)) / np.array(image.std)).float().permute(2, 0, 1)
    assert DeviceTransform(image, augmentation=None, seed=0) is not None
    prepared = for_open_clip(image)
    prepared = {key: value for key, value in prepared.items() if key not in ("size", "mode")}
    found = {"open_clip": open_clip.image_transform(image.size, is_train=False, **prepared)(picture)}
    settings = timm.data.resolve_data_config(pretrained_cfg=for_timm(image))
    found["timm"] = timm.data.create_transform(**settings, is_training=False)(picture)
    settings = {key: value for key, value in for_transformers(image).items() if key != "image_processor_type"}
    processor = transformers.CLIPImageProcessor(**settings)
    found["hf"] = processor(picture, return_tensors="pt")["pixel_values"][0]
    for form, pixels in found.items():
        said = " ".join(differences(form, image, looks=AveragingConfig()))  # type: ignore[arg-type]
        differs = "border" in said or "cuts" in said
        assert pixels.shape == own.shape
        middle = slice(12, 28) if fit == "crop" else slice(None)
        off = float((pixels - own)[:, middle, middle].abs().max())
        if fit == "pad" and form != "open_clip":
            assert differs
        else:
            assert off <= 1.5 * LEVEL * (4 if fit == "crop" else 1), form
            assert differs == (fit == "crop")


@pytest.mark.slow
@pytest.mark.parametrize("form", ["hf", "open_clip", "timm", "onnx"])
def test_a_full_size_expert(form: str, tmp_path: Path) -> None:
    """Twelve layers on both sides add up what single operations differ by; export itself compares."""
    words = {
        "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 12,
        "vocabulary": 30522, "max_position_embeddings": 512,
    }  # fmt: skip
    make = towers(vision="vit_small_patch16_224", size=224, text="bert", read="pooler", embedding_size=512, words=words)
    done = export(make(tmp_path), to=form, out=tmp_path / "out", reporter=Recorder())  # type: ignore[arg-type]
    assert done.checked
