"""What leaves answers as the bundle does, from a picture and a text on, by the other library's own calls alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import open_clip
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

import consilium
from consilium.core.errors import ExportError
from consilium.data.batches.rows import Query
from consilium.export.forms import FORMS, Form
from consilium.export.run import Exported, export
from consilium.models.trained import DualEncoder, Trained
from consilium.tasks.family import family_of
from tests.tasks.test_whole_models import built, embedded, experiment_of
from tests.tiny import Recorder

TEXT = "Left pleural effusion with atelectasis, no pathological finding"
TREE, HIDDEN = "classifier, label tree (`joint`)", "classifier, head with hidden layers"
Bundles = Callable[[str], Path]
Left = Callable[[str, Form], Exported]


def held(form: Form) -> list[str]:
    """The models that the table of the guide says a form holds."""
    from tests.export.test_forms import TABLE

    return [name for name, cells in TABLE.items() if cells[FORMS.index(form)]]


def picture(model: consilium.Predictor) -> Image.Image:
    """A picture of the size that a model takes, which no library has to resize."""
    height, width = model.image.size
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8))


def answered(bundle: Path) -> tuple[dict[str, Any], Image.Image, consilium.Predictor]:
    model = consilium.load(bundle, device="cpu")
    image = picture(model)
    query: Any = Query(image, TEXT) if "text_embedding" in model.manifest.gives else image  # type: ignore[union-attr]
    return model.predict([query])[0], image, model


def trained(model: consilium.Predictor) -> Trained:
    found = family_of(model.manifest.task).trained(model.task)  # type: ignore[union-attr]
    assert found is not None
    return found


def close(found: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found.detach().flatten(), torch.tensor(expected), rtol=0, atol=1e-5)


def unit(found: Tensor) -> Tensor:
    return functional.normalize(found, dim=-1)


@pytest.mark.parametrize("name", [name for name in held("hf") if not name.startswith("classifier")])
@torch.no_grad()
def test_experts_in_transformers(name: str, bundles: Bundles, exported: Left) -> None:
    left = exported(name, "hf")
    folder, kind = left.folder, left.kind
    answer, image, model = answered(bundles(name))
    loaded = getattr(transformers, kind).from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    pixels = processor(images=[image], return_tensors="pt")
    close(unit(loaded.get_image_features(**pixels).pooler_output), answer["image_embedding"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    padding = "max_length" if kind == "SiglipModel" else True
    tokens = tokenizer([TEXT, "a"], return_tensors="pt", truncation=True, padding=padding)
    close(unit(loaded.get_text_features(**tokens).pooler_output)[0], answer["text_embedding"])
    own = trained(model)
    assert isinstance(own, DualEncoder)
    assert float(loaded.logit_scale.detach()) == pytest.approx(own.log_scale)


@pytest.mark.parametrize("name", [name for name in held("hf") if not name.startswith("classifier")])
@torch.no_grad()
def test_image_towers_in_transformers(name: str, bundles: Bundles, exported: Left) -> None:
    folder = exported(name, "hf").folder
    model = consilium.load(bundles(name), device="cpu")
    tower = trained(model).vision
    pixels = torch.randn(2, 3, *model.image.size)
    loaded = transformers.AutoModel.from_pretrained(folder / "image_tower").eval()
    hidden = loaded(pixel_values=pixels).last_hidden_state
    if tower.library == "transformers":
        expected = tower.model(pixel_values=pixels).last_hidden_state
    else:
        expected = tower.model.forward_features(pixels)
        if isinstance(loaded, transformers.CLIPVisionModel):  # which norms what it pools alone
            hidden = loaded.post_layernorm(hidden)
    torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-5)
    processor = transformers.AutoImageProcessor.from_pretrained(folder / "image_tower")
    assert processor(picture(model), return_tensors="pt")["pixel_values"].shape == (1, 3, *model.image.size)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tower of timm, texts by `cls` or `mean`", "ViTModel"),
        ("CLIP of open_clip", "CLIPVisionModel"),
        ("classifier with a tower of timm", "TimmWrapperModel"),
        ("classifier with a ViT of transformers", "ViTModel"),
    ],
)
@torch.no_grad()
def test_an_image_tower_alone(name: str, kind: str, bundles: Bundles, tmp_path: Path) -> None:
    done = export(bundles(name), to="hf", out=tmp_path / "out", image_tower=True, reporter=Recorder())
    assert done.kind == "image tower"
    loaded = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    assert type(loaded).__name__ == kind
    model = consilium.load(bundles(name), device="cpu")
    tower = trained(model).vision
    pixels = torch.randn(2, 3, *model.image.size)
    hidden = loaded(pixel_values=pixels).last_hidden_state
    hidden = loaded.post_layernorm(hidden) if kind == "CLIPVisionModel" else hidden
    expected = tower._maps(pixels)
    torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_language_model_that_sees_takes_an_image_tower(bundles: Bundles, tmp_path: Path) -> None:
    """LLaVA of transformers: an expert's tower in its place gives the tokens that its language model reads."""
    export(bundles("CLIP of open_clip"), to="hf", out=tmp_path / "out", image_tower=True, reporter=Recorder())
    tower = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    words = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    config = transformers.LlavaConfig(vision_config=tower.config, text_config=words, image_token_id=63)
    seeing = transformers.LlavaModel(config).eval()
    seeing.vision_tower.load_state_dict(tower.state_dict())
    pixels = torch.randn(1, 3, 32, 32)
    (found,) = seeing.get_image_features(pixel_values=pixels).pooler_output
    own: Any = trained(consilium.load(bundles("CLIP of open_clip"), device="cpu")).vision.model
    *_, before_last, _ = own.forward_intermediates(pixels, intermediates_only=True, output_fmt="NLC")
    torch.testing.assert_close(found, seeing.multi_modal_projector(before_last)[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_vit_of_timm_is_one_of_transformers(bundles: Bundles, exported: Left) -> None:
    """Software for vision and language takes the tokens of single layers, which only its own classes give."""
    name = "tower of timm, texts by `pooler`"
    folder = exported(name, "hf").folder
    model = consilium.load(bundles(name), device="cpu")
    loaded = transformers.AutoModel.from_pretrained(folder / "image_tower").eval()
    assert isinstance(loaded, transformers.ViTModel)
    pixels = torch.randn(2, 3, *model.image.size)
    found = loaded(pixel_values=pixels, output_hidden_states=True).hidden_states
    own: Any = trained(model).vision.model
    expected = own.forward_intermediates(pixels, intermediates_only=True, output_fmt="NLC", return_prefix_tokens=True)
    for hidden, (patches, first) in zip(found[1:], expected, strict=True):
        torch.testing.assert_close(hidden, torch.cat((first, patches), dim=1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in held("hf") if name.startswith("classifier")])
@torch.no_grad()
def test_classifiers_in_transformers(name: str, bundles: Bundles, exported: Left) -> None:
    folder = exported(name, "hf").folder
    answer, image, _ = answered(bundles(name))
    loaded = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    logits = loaded(**processor(image, return_tensors="pt")).logits
    found = logits.sigmoid() if loaded.config.problem_type == "multi_label_classification" else logits.softmax(1)
    close(found, list(answer["probabilities"].values()))
    assert list(loaded.config.id2label.values()) == list(answer["probabilities"])


@pytest.mark.parametrize("name", held("open_clip"))
@torch.no_grad()
def test_experts_in_open_clip(name: str, bundles: Bundles, exported: Left) -> None:
    folder = exported(name, "open_clip").folder
    answer, image, model = answered(bundles(name))
    loaded, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    close(loaded.eval().encode_image(preprocess(image)[None], normalize=True), answer["image_embedding"])
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    close(loaded.encode_text(tokenizer([TEXT]), normalize=True), answer["text_embedding"])
    own = trained(model)
    assert isinstance(own, DualEncoder)
    assert float(loaded.logit_scale) == pytest.approx(own.log_scale)
    assert own.bias is None or float(loaded.logit_bias) == pytest.approx(own.bias)


@pytest.mark.parametrize("name", held("timm"))
@torch.no_grad()
def test_towers_and_classifiers_in_timm(name: str, bundles: Bundles, exported: Left) -> None:
    folder = exported(name, "timm").folder
    answer, image, model = answered(bundles(name))
    config = json.loads((folder / "config.json").read_text())
    loaded = timm.create_model(
        config["architecture"],
        num_classes=config["num_classes"],
        checkpoint_path=folder / "model.safetensors",
        **config["model_args"],
    ).eval()
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    prepared = timm.data.create_transform(**timm.data.resolve_data_config(model=again), is_training=False)
    pixels = prepared(image)[None]
    assert torch.equal(loaded(pixels), again(pixels))
    if "probabilities" in answer:
        labels = config["label_names"]
        found = loaded(pixels).sigmoid() if "labels" in answer else loaded(pixels).softmax(1)
        close(found, [answer["probabilities"][label] for label in labels])
    else:
        torch.testing.assert_close(loaded(pixels), trained(model).vision(pixels), rtol=0, atol=1e-5)


def onnx_answers(bundle: Path, folder: Path) -> None:
    """The files of a bundle give its answers, at several batches and lengths."""
    answer, image, model = answered(bundle)
    described = json.loads((folder / "onnx.json").read_text())
    shown = described["image"]["preprocessing"]
    pixels = (np.asarray(image, np.float32) / 255 - np.float32(shown["mean"])) / np.float32(shown["std"])
    session = onnxruntime.InferenceSession(folder / described["image"]["file"])
    for count in (1, 3, 7):
        batch = np.repeat(pixels.transpose(2, 0, 1)[None], count, 0)
        found = session.run(None, {described["image"]["input"]["name"]: batch})
        outputs = dict(zip(described["image"]["outputs"], found, strict=True))
        if "probabilities" in answer:
            assert described["answers"]["labels"] == list(answer["probabilities"])
            np.testing.assert_allclose(outputs["probabilities"][-1], list(answer["probabilities"].values()), atol=1e-5)
        else:
            np.testing.assert_allclose(outputs["image_embedding"][-1], answer["image_embedding"], atol=1e-5)
    if "text" not in described:
        return
    texts, tokenizer = described["text"], transformers.AutoTokenizer.from_pretrained(folder)
    session = onnxruntime.InferenceSession(folder / texts["file"])
    length = {"max_length": texts["context_length"], "truncation": True}
    padding = "max_length" if texts["padding"] == "to context_length" else True
    for others in ([], ["a", "no effusion"], ["CT"] * 6):
        tokens = tokenizer([*others, TEXT], return_tensors="np", padding=padding, **length)
        asked = {each.name: np.asarray(tokens[each.name], np.int64) for each in session.get_inputs()}
        np.testing.assert_allclose(session.run(None, asked)[0][-1], answer["text_embedding"], atol=1e-5)
    assert described["embedding"]["size"] == len(answer["text_embedding"])
    assert described["embedding"]["log_scale"] == pytest.approx(trained(model).log_scale)  # type: ignore[union-attr]


def test_a_classifier_of_a_tree_in_onnx(bundles: Bundles, exported: Left) -> None:
    onnx_answers(bundles(TREE), exported(TREE, "onnx").folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", held("onnx"))
def test_every_model_in_onnx(name: str, bundles: Bundles, exported: Left) -> None:
    onnx_answers(bundles(name), exported(name, "onnx").folder)


def stacked(described: dict[str, Any], tensors: dict[str, Tensor], name: str) -> Callable[[Tensor], Tensor]:
    """The linear layers ``name`` as ``model.json`` describes them."""

    def run(features: Tensor) -> Tensor:
        for number in range(len(described[name]["layers"])):
            if number:
                assert described[name]["activation"] == "gelu"
                features = functional.gelu(features)
            place = f"{name}.{number}"
            features = functional.linear(features, tensors[f"{place}.weight"], tensors.get(f"{place}.bias"))
        return features

    return run


def plain_image(described: dict[str, Any], tensors: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """The image tower that ``model.json`` describes, made of timm or transformers alone."""
    state = {name.removeprefix("image."): value for name, value in tensors.items() if name.startswith("image.")}
    if described["library"] == "timm":
        options = {"num_classes": 0, **described["options"]}
        size = described["preprocessing"]["size"]
        try:
            model: Any = timm.create_model(described["name"], img_size=size, **options)
        except TypeError:
            model = timm.create_model(described["name"], **options)
        model.load_state_dict(state, strict=described["pooling"] == "default")
        if described["pooling"] == "avg":
            return lambda pixels: model.eval().forward_features(pixels)[:, model.num_prefix_tokens :].mean(1)
        return model.eval()  # type: ignore[no-any-return]
    config = transformers.AutoConfig.for_model(**described["config"])
    model = transformers.AutoModel.from_config(config).eval()
    model.load_state_dict(state, strict=False)
    if described["readout"] == "cls":
        return lambda pixels: model(pixel_values=pixels).last_hidden_state[:, 0]
    return lambda pixels: model(pixel_values=pixels).pooler_output


@pytest.mark.parametrize("name", held("safetensors"))
@torch.no_grad()
def test_plain_tensors_and_what_describes_them(name: str, bundles: Bundles, exported: Left) -> None:
    folder = exported(name, "safetensors").folder
    answer, image, _ = answered(bundles(name))
    tensors = load_file(folder / "model.safetensors")
    described = json.loads((folder / "model.json").read_text())
    shown = described["image"]["preprocessing"]
    pixels = torch.tensor((np.asarray(image, np.float32) / 255 - np.float32(shown["mean"])) / np.float32(shown["std"]))
    features = plain_image(described["image"], tensors)(pixels.permute(2, 0, 1)[None])
    if "probabilities" in answer:
        logits = stacked(described, tensors, "head")(features) / tensors["temperatures"]
        parents = described["answers"].get("parents", [None] * len(logits[0]))
        found = logits.sigmoid()
        if not described["answers"]["multi_label"]:
            for node, parent in enumerate(parents):
                siblings = [other for other, same in enumerate(parents) if same == parent]
                share = logits[0, siblings].softmax(0)[siblings.index(node)]
                found[0, node] = share * (1 if parent is None else found[0, parent])
        close(found, list(answer["probabilities"].values()))
        return
    close(unit(stacked(described, tensors, "image_projection")(features)), answer["image_embedding"])
    config = transformers.AutoConfig.for_model(**described["text"]["config"])
    kinds = {"siglip_text_model": "SiglipTextModel", "chinese_clip_text_model": "ChineseCLIPTextModel"}
    kind = getattr(transformers, kinds.get(config.model_type, "AutoModel"))
    text = kind._from_config(config) if config.model_type in kinds else kind.from_config(config)
    text.eval().load_state_dict(
        {key.removeprefix("text."): value for key, value in tensors.items() if key.startswith("text.")}, strict=False
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    padding = "max_length" if described["text"]["reads_padding"] else True
    tokens = tokenizer([TEXT], return_tensors="pt", truncation=True, padding=padding)
    tokens.pop("attention_mask", None)
    out = text(**tokens)
    by_end = described["text"]["reads_padding"] and described["text"]["pooling"] == "eot"
    words = (
        out.last_hidden_state[:, int(tokens["input_ids"].argmax())]
        if by_end
        else {
            "cls": lambda: out.last_hidden_state[:, 0],
            "mean": lambda: out.last_hidden_state.mean(1),
            "last_token": lambda: out.last_hidden_state[:, -1],
        }.get(described["text"]["pooling"], lambda: out.pooler_output)()
    )
    close(unit(stacked(described, tensors, "text_projection")(words)), answer["text_embedding"])


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("CLIP of open_clip", "open_clip"),
        ("SigLIP of open_clip", "open_clip"),
        ("BiomedCLIP, whose texts have two layers", "open_clip"),
        ("the same, `task.projection.kind: mlp`", "open_clip"),
        ("CLIP of open_clip", "hf"),
        ("Chinese-CLIP of transformers", "hf"),
        ("SigLIP of transformers", "hf"),
    ],
)
@torch.no_grad()
def test_what_left_comes_back_as_a_start(
    name: str, form: Form, bundles: Bundles, exported: Left, tmp_path: Path
) -> None:
    model = consilium.load(bundles(name), device="cpu")
    own = trained(model)
    assert isinstance(own, DualEncoder)
    again, started, _ = built(experiment_of(tmp_path, str(exported(name, form).folder)))
    assert started.data.image.model_dump(exclude={"statistics"}) == model.image.model_dump(exclude={"statistics"})
    pixels = torch.randn(2, 3, *model.image.size)
    padded = own.tokenizer.pad(own.tokenizer.encode([TEXT, "a"]))
    assert again.tokenizer.encode([TEXT]) == own.tokenizer.encode([TEXT])
    found = embedded(again, pixels, padded.tokens_BT, padded.attention_BT)
    expected = own.embed_images(pixels), own.embed_texts(padded.tokens_BT, padded.attention_BT)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert [license.name for license in again.licenses] == ["apache-2.0"]


def test_a_form_that_cannot_hold_a_model_names_those_that_can(bundles: Bundles, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"hidden layers, .* What can: onnx, safetensors\."):
        export(bundles(HIDDEN), to="timm", out=tmp_path / "out", reporter=Recorder())
    with pytest.raises(ExportError, match=r"What can: onnx, safetensors\.$"):
        export(
            bundles("`task.vision.pooling` other than `default`"),
            to="hf",
            out=tmp_path / "out",
            image_tower=True,
            reporter=Recorder(),
        )
    with pytest.raises(ExportError, match=r"--image-tower is for --to hf, and --to is onnx"):
        export(bundles("CLIP of open_clip"), to="onnx", out=tmp_path / "out", image_tower=True, reporter=Recorder())
    assert not (tmp_path / "out").exists()
