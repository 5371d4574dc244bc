"""The recipes of experts train for two steps: on tiny models in the forms that they name, and slowly at full size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file

import consilium
from consilium.core.config import apply_overrides, build, read_tree
from consilium.experiment import Experiment
from consilium.session import train
from tests.models.checkpoints.checkpoints import converted_chinese_clip
from tests.models.checkpoints.writers import biomed_open, siglip_hf, write_tokenizer
from tests.models.texts import write_encoder
from tests.tasks.test_align_contract import write
from tests.tasks.test_align_views_trained import write_eyes
from tests.tiny import Recorder

RECIPES = Path(__file__).parents[2] / "recipes"
BERT_BASE: dict[str, Any] = {
    "vocabulary": 30522, "max_position_embeddings": 512, "hidden_size": 768, "intermediate_size": 3072,
    "num_hidden_layers": 12, "num_attention_heads": 12,
}  # fmt: skip
SHORT = ["trainer.max_steps=2", "trainer.device=cpu", "trainer.precision=fp32", "data.loader.workers=0"]


def trained(
    recipe: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *overrides: str,
    data: Path | None = None,
    reporter: Recorder | None = None,
) -> Any:
    """The model that a recipe makes in two steps of a table, else of captioned squares or pairs of them."""
    if data is None:
        data = write_eyes(folder / "eyes") if recipe == "retclip" else write(folder / "pairs")
    monkeypatch.setenv("CONSILIUM_DATA", str(data.parent))
    places = [
        f"data.store.root={json.dumps(str(folder / 'stores'))}",
        f"output.root={json.dumps(str(folder / 'runs'))}",
    ]
    tree = apply_overrides(read_tree(RECIPES / f"{recipe}.yaml"), [*SHORT, *places, *overrides], model=Experiment)
    result = train(build(Experiment, tree, origin=recipe), reporter=reporter or Recorder())
    assert result is not None
    return consilium.load(result.folder, device="cpu")


def write_towers(folder: Path) -> list[str]:
    """A file of an image tower and a folder of a text tower, as the recipes name them one by one."""
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), folder / "vit.safetensors")
    text = write_encoder(folder / "bert")
    return [
        "task.vision.name=test_vit",
        f"task.vision.pretrained={folder / 'vit.safetensors'}",
        f"task.text.name={text}",
        "task.text.context_length=32",
        "data.image.size=[32, 32]",
    ]


@pytest.mark.parametrize("recipe", ["clip", "lora"])
def test_two_towers(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(recipe, tmp_path, monkeypatch, *write_towers(tmp_path), "data.loader.batch_size=8")
    assert model.manifest.task.embedding_size == 512


def write_clip_and_splade(folder: Path, *, vision: Any, **text: Any) -> list[str]:
    """A CLIP, of which the image tower is taken, and a masked language model with the card of NAVER's."""
    clip = transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision, text_config={"num_hidden_layers": 1}))
    clip.save_pretrained(folder / "clip")
    splade = write_encoder(folder / "splade", head="AutoModelForMaskedLM", **text)
    (splade / "README.md").write_text("---\nlicense: cc-by-nc-sa-4.0\n---\n", encoding="utf-8")
    return [f"task.vision.name={folder / 'clip'}", f"task.text.name={splade}"]


def check_clip_splade(folder: Path, monkeypatch: pytest.MonkeyPatch, towers: list[str], *overrides: str) -> Any:
    """Train the recipe, which warns of what the licence forbids; its texts are weights of terms."""
    reporter = Recorder()
    model = trained("clip_splade", folder, monkeypatch, *towers, *overrides, reporter=reporter)
    assert any("cc-by-nc-sa-4.0, which forbids commercial use" in line for line in reporter.lines)
    (answer,) = model.predict(consilium.Query(text="A square that is red"))
    assert len(answer["text_terms"]) > 1
    return model


def test_clip_and_splade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {
        "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    towers = write_clip_and_splade(tmp_path, vision=tiny)
    short = ["task.text.context_length=32", "data.image.size=[32, 32]", "data.loader.batch_size=8"]
    check_clip_splade(tmp_path, monkeypatch, towers, *short)


@pytest.mark.parametrize(("recipe", "form"), [("biomedclip", biomed_open), ("siglip", siglip_hf)])
def test_whole_models(
    recipe: str, form: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = form(tmp_path / "model")
    model = trained(recipe, tmp_path, monkeypatch, f"task.model={written.folder}", "data.loader.batch_size=8")
    assert model.manifest.task.loss.kind == ("sigmoid" if recipe == "siglip" else "softmax")
    assert model.manifest.image.size == ((32, 32) if recipe == "siglip" else (160, 160))


def test_two_eyes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a checkpoint of Chinese-CLIP that was converted, as the recipe says."""
    folder = converted_chinese_clip(tmp_path / "model").folder
    own = [f"task.model={folder}", "task.text.context_length=32", "data.loader.batch_size=8"]
    model = trained("retclip", tmp_path, monkeypatch, *own)
    assert model.task.views == ("left", "right")
    assert model.manifest.image.size == (32, 32)


def full_biomedclip(folder: Path) -> Path:
    """BiomedCLIP's architecture in open_clip's form, with random weights."""
    import open_clip

    text = folder / "bert"
    transformers.BertConfig(vocab_size=30522, max_position_embeddings=512).save_pretrained(text)
    vision = {"timm_model_name": "vit_base_patch16_224", "timm_pool": "", "timm_proj": "linear", "image_size": 224}
    words = {
        "hf_model_name": str(text),
        "hf_tokenizer_name": str(folder),
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": 256,
    }
    described = {"model_cfg": {"embed_dim": 512, "vision_cfg": vision, "text_cfg": words}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(described), encoding="utf-8")
    write_tokenizer(folder)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
    state = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def full_siglip(folder: Path) -> Path:
    """SigLIP B/16 at 224 pixels, with random weights."""
    transformers.SiglipModel(transformers.SiglipConfig()).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def full_chinese_clip(folder: Path) -> Path:
    """Chinese-CLIP with a ViT-B/16 at 224 pixels and a BERT of base size, with random weights."""
    config = transformers.ChineseCLIPConfig(vision_config={"patch_size": 16}, text_config={"vocab_size": 21128})
    transformers.ChineseCLIPModel(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "form", "context"),
    [("biomedclip", full_biomedclip, 256), ("siglip", full_siglip, 64), ("retclip", full_chinese_clip, 100)],
)
def test_whole_models_of_full_size(
    recipe: str, form: Callable[[Path], Path], context: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    folder = form(tmp_path / "model")
    few = ["data.loader.batch_size=4", "data.filters.max_eval_samples=4"]
    model = trained(recipe, tmp_path, monkeypatch, f"task.model={folder}", *few)
    assert model.manifest.image.size == (224, 224)
    assert model.manifest.task.text.context_length == context


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["clip", "lora"])
def test_two_towers_of_full_size(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "vit.safetensors"
    save_file(timm.create_model("vit_base_patch16_224", num_classes=0).state_dict(), file)
    text = write_encoder(tmp_path / "bert", **BERT_BASE)
    overrides = [f"task.vision.pretrained={file}", f"task.text.name={text}", "data.loader.batch_size=4"]
    model = trained(recipe, tmp_path, monkeypatch, *overrides)
    assert model.manifest.image.size == (224, 224)


@pytest.mark.slow
def test_clip_and_splade_of_full_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    towers = write_clip_and_splade(tmp_path, vision={}, **BERT_BASE)  # an empty one is ViT-B/32
    model = check_clip_splade(tmp_path, monkeypatch, towers, "data.loader.batch_size=4")
    assert model.manifest.image.size == (224, 224)
    assert len(model.task.terms()) == 30522
