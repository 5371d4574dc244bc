"""Text towers: readouts free of padding, blocks, weights in several forms, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from consilium.core.contracts import ParameterGroup
from consilium.core.errors import ConfigError, WeightsError
from consilium.models.config import FreezeConfig, TextConfig
from consilium.models.text import TextTower, build_text, build_tokenizer
from consilium.models.tokenizer import Tokenizer
from consilium.models.weights import freeze_tower
from consilium.training.config import AdamConfig, GroupConfig
from consilium.training.optim import build_optimizer
from tests.models.texts import CAPTIONS, caption_tokenizer, write_encoder

KINDS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"pad_id": 1, "vocabulary": 300},
    "distilbert": {"dim": 32, "hidden_dim": 37, "n_layers": 3, "n_heads": 4},
    "electra": {"embedding_size": 16},
    "modernbert": {},
    "mpnet": {"pad_id": 1},
    "deberta-v2": {},
}


def build(**options: Any) -> tuple[TextTower, Tokenizer]:
    torch.manual_seed(0)
    config = TextConfig(**{"context_length": 32, **options})
    tokenizer = build_tokenizer(config, texts=CAPTIONS)
    return build_text(config, tokenizer=tokenizer).eval(), tokenizer


def features(tower: TextTower, tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    padded = tokenizer.pad(tokenizer.encode(texts))
    with torch.no_grad():
        return tower(padded.tokens_BT, padded.attention_BT)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("bert"))


# -- Features -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_has_the_same_features_alone_as_in_a_batch(kind: str, pooling: str, tmp_path: Path) -> None:
    tower, tokenizer = build(name=str(write_encoder(tmp_path, kind=kind, **KINDS[kind])), pooling=pooling)
    together_BF = features(tower, tokenizer, ["left", *CAPTIONS])
    assert together_BF.shape == (len(CAPTIONS) + 1, tower.num_features)
    for text, row_F in zip(["left", *CAPTIONS], together_BF, strict=True):
        torch.testing.assert_close(features(tower, tokenizer, [text])[0], row_F, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean", "pooler"])
def test_features_are_the_library_s_own(pooling: str, bert: Path) -> None:
    tower, tokenizer = build(name=str(bert), pooling=pooling)
    model = transformers.AutoModel.from_pretrained(bert).eval()
    theirs = transformers.AutoTokenizer.from_pretrained(bert)(CAPTIONS, padding=True, return_tensors="pt")
    padded = tokenizer.pad(tokenizer.encode(CAPTIONS))
    torch.testing.assert_close(padded.tokens_BT, theirs["input_ids"])
    with torch.no_grad():
        found = model(input_ids=theirs["input_ids"], attention_mask=theirs["attention_mask"])
    mask_BT = theirs["attention_mask"].bool()
    expected = {
        "cls": found.last_hidden_state[:, 0],
        "mean": torch.stack([h[m].mean(0) for h, m in zip(found.last_hidden_state, mask_BT, strict=True)]),
        "pooler": found.pooler_output,
    }
    torch.testing.assert_close(features(tower, tokenizer, CAPTIONS), expected[pooling], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", ["cls", "mean", "pooler"])
def test_every_parameter_gets_a_gradient(pooling: str, bert: Path) -> None:
    tower, tokenizer = build(name=str(bert), pooling=pooling)
    padded = tokenizer.pad(tokenizer.encode(CAPTIONS))
    assert all(parameter.grad is None for parameter in tower.parameters())
    tower.train()(padded.tokens_BT, padded.attention_BT).square().sum().backward()
    assert [key for key, parameter in tower.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(("name", "layers", "width"), [("tiny", 2, 128), ("small", 4, 256)])
def test_from_scratch(name: str, layers: int, width: int) -> None:
    tower, tokenizer = build(name=name, pretrained=False, vocabulary_size=256)
    assert tokenizer == caption_tokenizer()
    assert (tower.num_features, len(tower.blocks())) == (width, layers + 1)
    assert tower.model.get_input_embeddings().num_embeddings == tokenizer.vocabulary_size
    long = features(tower, tokenizer, [" ".join(CAPTIONS)])  # as long as the context
    assert torch.isfinite(long).all()
    assert torch.equal(long, features(*build(name=name, pretrained=False, vocabulary_size=256), [" ".join(CAPTIONS)]))


@pytest.mark.parametrize("name", ["hub", "tiny"])
def test_a_bundle_builds_the_tower_again_from_its_architecture(name: str, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "there")
    options = {"name": str(folder)} if name == "hub" else {"name": "tiny", "pretrained": False}
    tower, tokenizer = build(**options)
    tokenizer.save(tmp_path)
    architecture = json.loads(json.dumps(tower.architecture, allow_nan=False))
    assert str(tmp_path) not in str(architecture)
    shutil.rmtree(folder)
    config = TextConfig(context_length=32, **options)
    again = build_text(config, tokenizer=Tokenizer.load(tmp_path), architecture=architecture).eval()
    again.load_state_dict(tower.state_dict())
    assert torch.equal(features(again, tokenizer, CAPTIONS), features(tower, tokenizer, CAPTIONS))


def test_blocks_hold_every_parameter_once_and_the_last_ones_learn(bert: Path) -> None:
    tower, _ = build(name=str(bert))
    blocks = tower.blocks()
    assert len(blocks) == 4
    held = [id(parameter) for block in blocks for parameter in block]
    assert sorted(held) == sorted(id(parameter) for parameter in tower.parameters())
    freeze_tower(tower, FreezeConfig(kind="all_but_last_blocks", blocks=1), epoch=0)
    assert {name.split(".")[3] for name, one in tower.named_parameters() if one.requires_grad} == {"2"}


def test_layers_that_share_weights_are_no_blocks(tmp_path: Path) -> None:
    tower, _ = build(name=str(write_encoder(tmp_path, kind="albert", embedding_size=16)))
    with pytest.raises(
        ConfigError,
        match=r"layers of this encoder \(albert\) cannot be told apart; set freeze.kind to none or tower",
    ):
        tower.blocks()
    with pytest.raises(ConfigError, match=r"\(albert\) cannot be told apart; leave layer_decay out"):
        tower.depths()


@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert"])
def test_rates_fall_from_the_top_layer_down(kind: str, tmp_path: Path) -> None:
    """The top layer has the rate of the group, each below it 0.5 times that of the one above; embeddings are lowest."""
    tower, _ = build(name=str(write_encoder(tmp_path, kind=kind, **KINDS[kind])))
    config = AdamConfig(kind="adamw", learning_rate=0.8, groups={"text": GroupConfig(layer_decay=0.5)})
    group = ParameterGroup("text", list(tower.parameters()), depths=tower.depths)
    rates = {
        parameter: group["lr"]
        for group in build_optimizer(config, groups=[group]).param_groups
        for parameter in group["params"]
    }
    layers = re.compile(r"\.(?:layer|layers)\.(\d)\.")
    for name, parameter in tower.named_parameters():
        layer = layers.search(name)
        above = 2 - int(layer[1]) if layer else 3 if "embed" in name else 0
        assert rates[parameter] == pytest.approx(0.8 * 0.5**above), name
    assert sorted(set(rates.values())) == pytest.approx([0.1, 0.2, 0.4, 0.8])


# -- Weights ------------------------------------------------------------------------------------------------------


def test_weights_of_name_are_float32_and_random_ones_are_not_them(bert: Path, tmp_path: Path) -> None:
    halved = write_encoder(tmp_path)
    save_file({key: value.half() for key, value in load_file(bert / "model.safetensors").items()},
              halved / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    loaded, tokenizer = build(name=str(bert))
    assert all(parameter.dtype == torch.float32 for parameter in build(name=str(halved))[0].parameters())
    close = features(build(name=str(halved))[0], tokenizer, CAPTIONS)
    torch.testing.assert_close(close, features(loaded, tokenizer, CAPTIONS), rtol=1e-2, atol=1e-2)
    random, _ = build(name=str(bert), pretrained=False)
    assert not torch.allclose(features(random, tokenizer, CAPTIONS), close, atol=0.1)


@pytest.mark.parametrize("form", ["bert.", "state_dict.text.transformer.", "module.bert.", "folder", "bin"])
def test_weights_of_another_file(form: str, bert: Path, tmp_path: Path) -> None:
    """As open_clip, Chinese-CLIP and plain folders hold a BERT."""
    other = write_encoder(tmp_path / "other", num_hidden_layers=3, initializer_range=0.5)
    state = load_file(other / "model.safetensors")
    place = tmp_path / "weights.pt"
    if form == "folder":
        place = other
    elif form == "bin":
        torch.save(state, place)
    else:
        top, _, prefix = form.rpartition("state_dict.")
        beside = {"visual.conv1.weight": torch.zeros(3), "logit_scale": torch.zeros(())}
        named = {f"{prefix}{key}": value for key, value in state.items()} | beside
        torch.save({"state_dict": named} if form != prefix and not top else named, place)
    tower, tokenizer = build(name=str(bert), pretrained=str(place))
    expected, _ = build(name=str(other))
    assert torch.equal(features(tower, tokenizer, CAPTIONS), features(expected, tokenizer, CAPTIONS))
    assert ("logit_scale" in tower.weights_note) == (form not in ("folder", "bin"))


def test_a_head_of_pre_training_is_dropped_and_its_missing_pooler_refused(tmp_path: Path) -> None:
    """A BERT of masked-language training has no pooler; the library would make one at random."""
    folder = write_encoder(tmp_path, head="AutoModelForMaskedLM")
    build(name=str(folder), pooling="cls")
    with pytest.raises(WeightsError, match=r"pooling is pooler, but the weights .* never trained.*; use cls or mean"):
        build(name=str(folder), pooling="pooler")


def test_weights_that_lack_tensors_or_are_of_another_model_are_refused(bert: Path, tmp_path: Path) -> None:
    state = load_file(bert / "model.safetensors")
    few = {key: value for key, value in state.items() if ".layer.1." not in key}
    torch.save(few, tmp_path / "few.pt")
    with pytest.raises(WeightsError, match=r"lack 16 tensors of the text encoder: encoder.layer.1.attention"):
        build(name=str(bert), pretrained=str(tmp_path / "few.pt"))
    torch.save({"visual.conv1.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"do not fit .*most of those of BertModel are not among them"):
        build(name=str(bert), pretrained=str(tmp_path / "other.pt"))
    wide = write_encoder(tmp_path / "wide", hidden_size=64)
    with pytest.raises(WeightsError, match="do not fit"):
        build(name=str(bert), pretrained=str(wide))
    with pytest.raises(WeightsError, match="does not exist"):
        build(name=str(bert), pretrained=str(tmp_path / "nowhere.pt"))


@pytest.mark.parametrize("prefix", ["", "module.bert."])
def test_weights_of_another_depth_are_refused(prefix: str, bert: Path, tmp_path: Path) -> None:
    """Of a deeper model the library would quietly take the first layers."""
    for layers, said in ((2, "lack 16 tensors of the text encoder"), (4, "16 tensors of layers that it does not have")):
        other = load_file(write_encoder(tmp_path / str(layers), num_hidden_layers=layers) / "model.safetensors")
        torch.save({"state_dict": {prefix + name: tensor for name, tensor in other.items()}}, tmp_path / "other.pt")
        with pytest.raises(WeightsError, match=said):
            build(name=str(bert), pretrained=str(tmp_path / "other.pt"))


def test_weights_that_could_run_code_are_refused(bert: Path, tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return print, ("harm",)

    torch.save({"a": Harm()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="is refused"):
        build(name=str(bert), pretrained=str(tmp_path))
    copied = shutil.copytree(bert, tmp_path / "copied")
    (copied / "model.safetensors").unlink()
    torch.save({"a": Harm()}, copied / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="cannot be read"):
        build(name=str(copied))


def test_code_in_a_folder_does_not_run(bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert, tmp_path / "coded")
    config = json.loads((folder / "config.json").read_text())
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"the config of .* cannot be read"):
        build_text(TextConfig(name=str(folder), context_length=32), tokenizer=caption_tokenizer())
    assert not (tmp_path / "ran").exists()


# -- What is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "tiny"}, "tiny has no pretrained weights: set pretrained: false"),
        (
            {"name": "tiny", "pretrained": False, "interpolate_positions": True},
            "interpolate_positions is for pretrained encoders",
        ),
        ({"name": "org/bert", "vocabulary_size": 1000}, "vocabulary_size is for tiny and small only"),
        ({"pooling": "max"}, "cls"),
    ],
)
def test_keys_that_do_not_belong_together(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TextConfig(**options)


def test_a_tokenizer_must_fit_its_tower(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path, vocabulary=100)
    with pytest.raises(ConfigError, match=r"the tokenizer has \d+ tokens, but .* has embeddings of 100"):
        build(name=str(folder))


@pytest.mark.parametrize(
    ("kind", "most", "stretches"), [("bert", 40, True), ("roberta", 38, True), ("modernbert", 40, False)]
)
def test_a_context_must_fit_the_positions(kind: str, most: int, stretches: bool, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path, kind=kind, **KINDS[kind])
    with pytest.raises(ConfigError, match=f"context_length is 41, but .* has positions for {most} tokens") as refused:
        build(name=str(folder), context_length=41)
    assert ("interpolate_positions" in str(refused.value)) == stretches  # rotary positions have no table
    tower, tokenizer = build(name=str(folder), context_length=most)
    assert torch.isfinite(features(tower, tokenizer, [" ".join(CAPTIONS)])).all()


def test_only_towers_of_clip_are_read_at_the_end_of_a_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\(a bert\) has no end of text .* use cls, mean or last_token"):
        build(name=str(write_encoder(tmp_path)), pooling="eot")


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("gpt2", {"n_embd": 32, "n_head": 4, "n_layer": 2}, "reads with pooling 'cls' only a part of the text"),
        ("t5", {"d_model": 32, "num_layers": 2, "num_heads": 4}, "type t5, which is more than an encoder"),
        ("vit", {}, "type vit, which takes no tokens"),
    ],
)
def test_models_that_are_no_text_encoders(kind: str, options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, WeightsError), match=said):
        build(name=str(write_encoder(tmp_path, kind=kind, **options)))


def test_pooler_is_refused_where_there_is_none(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path, kind="distilbert", **KINDS["distilbert"])
    with pytest.raises(ConfigError, match="has no output for pooling 'pooler'; use cls, mean or"):
        build(name=str(folder), pooling="pooler")


def test_a_folder_without_tokenizer_or_config(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "there")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ConfigError, match=r"brings no vocabulary; add its tokenizer.json"):
        build(name=str(folder))
    for name in (str(tmp_path), f"{tmp_path}/nowhere", "./nowhere"):
        with pytest.raises(WeightsError, match=r"which is not a folder with a config.json"):
            build(name=name)


def test_without_a_network_the_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Session:
        def head(self, url: str, *, timeout: float) -> None:
            raise OSError("[Errno 111] Connection refused")

    monkeypatch.setattr("consilium.models.hub.get_session", Session)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    start = time.perf_counter()
    with pytest.raises(
        WeightsError, match=r"'org/bert' cannot be had from the hub \(.*refused; its cache .*\). Without"
    ):
        build(name="org/bert")
    assert time.perf_counter() - start < 5


def test_of_the_hub_only_what_is_read_is_fetched(bert: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []

    def download(name: str, *, allow_patterns: list[str]) -> str:
        for file in bert.iterdir():
            if any(file.match(pattern) for pattern in allow_patterns):
                asked.append(file.name)
                shutil.copy(file, tmp_path)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    (bert / "pytorch_model.bin").write_bytes(b"not wanted")
    tower, tokenizer = build(name="org/bert")
    assert asked[-1:] == ["model.safetensors"]
    assert "pytorch_model.bin" not in asked
    expected, _ = build(name=str(bert))
    assert torch.equal(features(tower, tokenizer, CAPTIONS), features(expected, tokenizer, CAPTIONS))
    asked.clear()
    build(name="org/bert", pretrained=False)
    assert not {"model.safetensors", "pytorch_model.bin"} & set(asked)


def test_building_is_silent(bert: Path, capfd: pytest.CaptureFixture[str]) -> None:
    build(name=str(bert))
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.parametrize(("kind", "before"), [("bert", 0), ("roberta", 2)])
def test_positions_are_stretched_behind_the_first_ones(kind: str, before: int, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path, kind=kind, **KINDS[kind])
    own = 40 - before
    short, _ = build(name=str(folder), context_length=own)
    longer, tokenizer = build(name=str(folder), context_length=96, interpolate_positions=True)
    tables = [tower.state_dict()["model.embeddings.position_embeddings.weight"] for tower in (short, longer)]
    assert [len(table) for table in tables] == [40, 96 + before]
    kept = before + own // 2
    assert torch.equal(tables[0][:kept], tables[1][:kept])
    rest, stretched = (table[kept:].double().numpy() for table in tables)
    places = np.linspace(0, len(rest) - 1, len(stretched))
    expected = np.stack([np.interp(places, np.arange(len(rest)), column) for column in rest.T], axis=1)
    np.testing.assert_allclose(stretched, expected, atol=1e-6)
    text = " ".join(CAPTIONS * 3)
    assert len(tokenizer.encode([text])[0]) > own
    others = {name: value for name, value in short.state_dict().items() if "position" not in name}
    assert all(torch.equal(longer.state_dict()[name], value) for name, value in others.items())

    again = build_text(
        TextConfig(name=str(tmp_path / "gone"), context_length=96, interpolate_positions=True),
        tokenizer=tokenizer, architecture=longer.architecture, pooling=longer.pooling,
    )  # fmt: skip
    again.load_state_dict(longer.state_dict())
    assert torch.equal(features(again.eval(), tokenizer, [text]), features(longer, tokenizer, [text]))


def test_positions_that_reach_stay_and_those_without_a_table_are_refused(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "bert")
    short, _ = build(name=str(folder), context_length=20)
    same, _ = build(name=str(folder), context_length=20, interpolate_positions=True)
    assert short.state_dict().keys() == same.state_dict().keys()
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in short.state_dict().items())
    folder = write_encoder(tmp_path / "modern", kind="modernbert", **KINDS["modernbert"])
    with pytest.raises(ConfigError, match=r"a modernbert\) has no table of positions"):
        build(name=str(folder), context_length=96, interpolate_positions=True)
