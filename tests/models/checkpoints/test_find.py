"""From names to readers: forms, activations, tokenizers, and what is refused. The traps are those of such checkpoints:
what costs a wrong embedding without an error (quick GELU, padding of SigLIP, trimmed texts, old names, RoBERTa-wwm,
poolers that were never trained); the others are in test_image_towers.py and tasks/test_whole_models.py."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Library

from consilium.core.errors import ConfigError, WeightsError
from consilium.models.checkpoints.clip_tokenizer import canonical, clip_tokenizer
from consilium.models.checkpoints.find import find_image, find_model, find_text
from consilium.models.checkpoints.open_clip_text import bert_of
from consilium.models.config import TextConfig, VisionConfig
from consilium.models.tokenizer import Tokenizer
from tests.models.checkpoints.writers import (
    biomed_open,
    clip_hf,
    clip_open,
    clipa_open,
    dual_clip_hf,
    siglip_hf,
    write_tokenizer,
)
from tests.models.texts import CAPTIONS, caption_tokenizer, write_encoder

TEXTS = [
    *CAPTIONS,
    "",
    "It's 3 cm x 12 mm!!",
    "  White   space\n and\ttabs ",
    "naïve Müller-cells 眼底",
    "a" * 300,
    "it'S'll",
]


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.getLogger().setLevel(logging.ERROR)


@pytest.mark.parametrize(
    ("name", "quick"),
    [
        ("ViT-B-32/openai", True),  # its config says nothing of it, its weights do
        ("ViT-B-32/laion2b_s34b_b79k", False),
        ("ViT-B-32-quickgelu/openai", True),
        ("ViT-L-14-quickgelu/dfn2b", True),
    ],
)
def test_the_activation_is_that_of_the_weights(name: str, quick: bool) -> None:
    layout = find_model(name).layout
    assert ("quickgelu" in layout.image.name) == quick
    assert layout.text.options["hidden_act"] == ("quick_gelu" if quick else "gelu")
    assert layout.image.input.fit == "crop"


READ = {
    "RN50x4/openai", "MobileCLIP-S1/datacompdr", "ViT-SO400M-16-SigLIP-i18n-256/webli", "ViT-B-16-SigLIP/webli",
    "ViT-B-16/openai", "ViT-H-14-CLIPA/datacomp1b", "convnext_base_w/laion2b_s13b_b82k", "ViT-H-14/laion2b_s32b_b79k",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(READ))
def test_a_name_of_open_clip_says_what_it_is_made_of(name: str) -> None:
    layout = find_model(name).layout
    model = open_clip.get_model_config(name.partition("/")[0])
    assert layout.embedding_size == model["embed_dim"]
    assert layout.text.context_length == model["text_cfg"].get("context_length", 77)
    assert layout.loss == ("sigmoid" if "SigLIP" in name else "softmax")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("coca_ViT-B-32/laion2b_s13b_b90k", r"does not read this architecture"),
        ("ViT-B-32", r"says no weights: give ViT-B-32/TAG, of which there is openai, laion"),
    ],
)
def test_what_is_not_read_is_named(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        _ = find_model(name).layout


def test_weights_that_are_not_here_say_what_to_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = find_model("ViT-B-32/laion2b_s34b_b79k")
    with pytest.raises(
        WeightsError, match=r"download laion/CLIP-ViT-B-32.* set task.model to \{name: ViT-B-32/laion2b"
    ):
        model.joint()
    with pytest.raises(WeightsError, match=r"and set task.vision.pretrained to FILE"):
        find_image(VisionConfig(kind="open_clip", name="ViT-B-32/openai")).load(image_size=(32, 32))
    with pytest.raises(WeightsError, match=r"config of task.model 'org/name' cannot be had .*name a local folder"):
        find_model("hf-hub:org/name")
    with pytest.raises(WeightsError, match=r"nearest are ViT-B-32"):
        find_model("ViT-B-33/openai")
    with pytest.raises(ConfigError, match=r"open_clip has no weights 'mine' of ViT-B-32; it has openai"):
        find_model("ViT-B-32/mine").joint()


def test_weights_of_a_file_are_read_as_those_of_their_tag(tmp_path: Path) -> None:
    """What the message above says to set keeps the activation and the image statistics of the tag."""
    there, here = (find_model("ViT-B-32/openai", weights=weights).layout for weights in (None, str(tmp_path / "file")))
    assert here == there
    assert "quickgelu" in here.image.name


def test_weights_of_a_file_stand_for_those_of_a_folder_of_transformers(tmp_path: Path) -> None:
    written = clip_hf(tmp_path / "model")
    file = (written.folder / "model.safetensors").rename(tmp_path / "tuned.safetensors")
    state = {name: tensor + 0.01 for name, tensor in load_file(file).items()}
    torch.save({"state_dict": state}, tmp_path / "tuned.pt")
    tokens_BT = torch.tensor([[2, 5, 6, 3]])
    found = find_model(str(written.folder), weights=str(tmp_path / "tuned.pt"))
    for name, tensor in found.text().model.state_dict().items():
        torch.testing.assert_close(tensor, state[f"text_model.{name}"])
    torch.testing.assert_close(found.joint().projections["text"]["0.weight"], state["text_projection.weight"])
    same = find_model(str(written.folder), weights=str(file))
    with torch.no_grad():
        pooled = same.text().model(input_ids=tokens_BT).pooler_output
        expected = written.texts(tokens_BT, torch.ones_like(tokens_BT))
    projected = pooled @ same.joint().projections["text"]["0.weight"].T
    torch.testing.assert_close(projected, expected, rtol=0, atol=1e-5)
    with pytest.raises(
        WeightsError, match=r"a file of weights, .* as task.model.name, and the file as task.model.pret"
    ):
        find_model(str(file)).layout  # noqa: B018  it reads the folder


def test_the_package_open_clip_reads_the_same_words() -> None:
    ours, theirs = Library.from_str(clip_tokenizer()), open_clip.get_tokenizer("ViT-B-32")
    ours.enable_truncation(77)
    ours.enable_padding(length=77, pad_id=0)
    for text in TEXTS:
        found = ours.encode(text)
        own = theirs([text])[0].tolist()
        assert len(found.ids) == 77
        if found.overflowing:  # both keep the mark of the end
            assert found.ids[-1] == own[-1] == 49407
        assert found.ids == own


@pytest.mark.parametrize("template", [True, False], ids=["template", "bert"])
def test_texts_of_clipa_end_in_zero_as_in_open_clip(template: bool, tmp_path: Path) -> None:
    folder = clipa_open(tmp_path / "model").folder
    if not template:  # as files of BERT write it
        described = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        described["post_processor"] = {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}
        (folder / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    definition, pad_id = find_model(str(folder)).tokenizer()
    ours = Tokenizer.made_of(definition, context_length=32, pad_id=pad_id, to_context=True)
    theirs = open_clip.get_tokenizer(f"local-dir:{folder}")
    for text in (*TEXTS, " ".join(CAPTIONS)):
        assert ours.pad(ours.encode([text])).tokens_BT.tolist() == theirs([text]).tolist()


def test_texts_of_siglip_are_cleaned_as_its_reference_does() -> None:
    from open_clip.tokenizer import canonicalize_text

    definition = caption_tokenizer().definition
    plain, cleaned = Library.from_str(definition), Library.from_str(canonical(definition))
    for text in TEXTS:
        assert cleaned.encode(text).ids == plain.encode(canonicalize_text(text)).ids


def write_sentence_pieces(folder: Path) -> Path:
    """A ``spiece.model`` with the special pieces of SigLIP's, in a folder without another tokenizer."""
    import sentencepiece

    for file in folder.glob("token*.json"):
        file.unlink()
    special = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS * 20), model_prefix=str(folder / "spiece"), vocab_size=60, **special,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return folder / "spiece.model"


def test_siglip_may_bring_its_sentence_pieces_alone(tmp_path: Path) -> None:
    folder = siglip_hf(tmp_path / "model").folder
    theirs = transformers.SiglipTokenizer(vocab_file=str(write_sentence_pieces(folder)))
    definition, pad_id = find_model(str(folder)).tokenizer()
    ours = Library.from_str(definition)
    assert ours.get_vocab_size() == theirs.vocab_size > 30
    assert pad_id == 0
    for text in TEXTS:
        assert ours.encode(text).ids == theirs(text.lower())["input_ids"]


def test_siglip2_pads_and_lowers_as_its_own_tokenizer_does(tmp_path: Path) -> None:
    """Its config does not say what it pads with: 0 of Gemma's vocabulary, where the usual 1 ends a text."""
    folder = siglip_hf(tmp_path / "model").folder
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del config["text_config"]["pad_token_id"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    described = {"tokenizer_class": "GemmaTokenizer", "pad_token": {"content": "[PAD]"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(described), encoding="utf-8")
    definition, pad_id = find_model(str(folder)).tokenizer()
    assert (pad_id, find_model(str(folder)).layout.text.options.get("pad_token_id", 1)) == (0, 1)
    ours, theirs = Library.from_str(definition), Library.from_file(str(folder / "tokenizer.json"))
    for text in TEXTS:
        assert ours.encode(text).ids == theirs.encode(text.lower()).ids


def test_a_damaged_description_of_a_tokenizer(tmp_path: Path) -> None:
    folder = siglip_hf(tmp_path / "model").folder
    for text in ("{", "[1]"):
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
        with pytest.raises(WeightsError, match=r"tokenizer_config\.json cannot be read .*Copy it again"):
            find_model(str(folder)).tokenizer()


def test_the_text_tower_of_a_siglip_by_itself(tmp_path: Path) -> None:
    config = transformers.SiglipTextConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"text tower of a SigLIP by itself .* name the folder of the whole model"):
        find_text(TextConfig(name=str(tmp_path)))


def test_sentence_pieces_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = siglip_hf(tmp_path / "model").folder
    (folder / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"neither tokenizer\.json nor spiece\.model"):
        find_model(str(folder)).tokenizer()
    (folder / "spiece.model").write_bytes(b"not a model")
    with pytest.raises(WeightsError, match=r"spiece\.model is no SentencePiece model .*Copy it again"):
        find_model(str(folder)).tokenizer()
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ConfigError, match=r"pip install 'consilium\[clip\]'"):
        find_model(str(folder)).tokenizer()


def test_files_with_the_names_of_transformers_4_are_read(tmp_path: Path) -> None:
    """Trap 5: of a dual encoder with a CLIP inside, ``vision_model.vision_model.*``."""
    written = dual_clip_hf(tmp_path / "model")
    file = written.folder / "model.safetensors"
    state = load_file(file)
    old = {name.replace("vision_model.", "vision_model.vision_model.", 1): tensor for name, tensor in state.items()}
    assert old.keys() != state.keys()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = written.images(images)
    save_file(old, file, metadata={"format": "pt"})
    loaded = find_model(str(written.folder))
    with torch.no_grad():
        pooled = loaded.image(image_size=(32, 32)).model(pixel_values=images).pooler_output
    projected = pooled @ loaded.joint().projections["image"]["0.weight"].T
    torch.testing.assert_close(projected, expected, rtol=0, atol=1e-5)


def test_a_roberta_by_name_may_be_a_bert(tmp_path: Path) -> None:
    """Trap 9: the type that the config states counts, whatever the folder is called."""
    folder = write_encoder(tmp_path / "chinese-roberta-wwm-ext")
    source = find_text(TextConfig(name=str(folder)))
    assert source.kind == "bert"
    assert type(source.load().model).__name__ == "BertModel"
    state = {name: tensor for name, tensor in source.load().model.state_dict().items() if "pooler" not in name}
    assert bert_of(state, origin="it")["model_type"] == "bert"
    roberta = {**state, "embeddings.token_type_embeddings.weight": torch.zeros(1, 32)}
    with pytest.raises(ConfigError, match=r"it may be a RoBERTa, whose positions begin elsewhere; put its config.json"):
        bert_of(roberta, origin="it")
    with pytest.raises(ConfigError, match=r"it has no tensor 'embeddings.word_embeddings.weight', so it is no BERT"):
        bert_of({}, origin="it")


def test_an_old_biomedclip_offline(tmp_path: Path) -> None:
    """Keys that open_clip itself no longer takes, and a text tower whose config lies on the hub alone."""
    written = biomed_open(tmp_path / "model")
    file = written.folder / "open_clip_config.json"
    described: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    text = described["model_cfg"]["text_cfg"]
    text |= {"proj": text.pop("hf_proj_type"), "pooler_type": text.pop("hf_pooler_type"), "hf_model_name": "org/bert"}
    file.write_text(json.dumps(described), encoding="utf-8")
    loaded = find_model(str(written.folder))
    assert loaded.layout.text.pooling == "cls"
    assert loaded.layout.text.options["num_attention_heads"] == 1
    assert loaded.layout.text_projection.sizes == [64, 44, 24]
    assert not loaded.text().missing - {"pooler.dense.weight", "pooler.dense.bias"}


def test_weights_of_another_model_say_what_they_hold(tmp_path: Path) -> None:
    written = clip_open(tmp_path / "model")
    file = written.folder / "open_clip_model.safetensors"
    save_file({"backbone.weight": torch.zeros(2), "head.weight": torch.zeros(2)}, file)
    with pytest.raises(WeightsError, match=r"hold nothing below `visual.`, but backbone, head; they are not those of"):
        find_model(str(written.folder)).image(image_size=(32, 32))
    other = clip_hf(tmp_path / "other")
    state = load_file(other.folder / "model.safetensors")
    kept = {name: tensor for name, tensor in state.items() if not name.startswith("text_model.")}
    save_file(kept, other.folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"lack \d+ tensors of a CLIPModel: text_model"):
        find_model(str(other.folder)).text()


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    written = clip_open(tmp_path / "model")
    torch.save(torch.nn.Linear(2, 2), saved := tmp_path / "module.pt")
    with pytest.raises(WeightsError, match=r"module.pt is refused: beside tensors it holds Python objects"):
        find_model(str(written.folder), weights=str(saved)).joint()


@pytest.mark.parametrize("described", ["{", "[]", '{"model_cfg": {"embed_dim": 3}}'])
def test_a_damaged_description_is_named(described: str, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(described, encoding="utf-8")
    with pytest.raises(WeightsError, match=r"open_clip_config.json is not the config of an open_clip model"):
        find_model(str(tmp_path))


def test_other_models_of_transformers_are_no_whole_model(tmp_path: Path) -> None:
    transformers.BertConfig().save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match=r"is a model of type bert; whole models that are read are clip, siglip"):
        _ = find_model(str(tmp_path)).layout
