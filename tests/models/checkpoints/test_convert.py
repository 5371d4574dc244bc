"""Checkpoints of other programs become folders whose towers give what theirs gave; all their tensors are told of."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from consilium.cli import app
from consilium.core.errors import ConfigError, WeightsError
from consilium.models.checkpoints.convert import Converted, convert
from consilium.models.checkpoints.find import find_image, find_model, find_text
from consilium.models.config import TextConfig, VisionConfig
from consilium.models.text import build_text, build_tokenizer
from consilium.models.vision import build_vision
from tests.models.checkpoints import checkpoints
from tests.models.checkpoints.checkpoints import BERT, EMBED, SIZE, WIDTH, Parts, save_flat, save_training
from tests.models.checkpoints.writers import write_tokenizer

FORMS: dict[str, Callable[[], Parts]] = {
    "Chinese-CLIP": checkpoints.chinese_clip,
    "RET-CLIP": checkpoints.ret_clip,
    "FLAIR of fundus photographs": checkpoints.fundus_flair,
    "FLAIR of Xiao et al.": checkpoints.other_flair,
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **BERT}))
    return str(folder)


def told(done: Converted) -> int:
    return sum(int(row["tensors"]) for row in done.rows)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("save", [save_flat, save_training])
def test_every_tensor_is_told_of(form: str, save: Any, tmp_path: Path, tokenizer: str) -> None:
    parts = FORMS[form]()
    done = convert(save(tmp_path / "a.pt", parts.state), out=tmp_path / "out", tokenizer=tokenizer)
    assert (done.form, told(done)) == (form, len(parts.state))
    written = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    heads = tmp_path / "out" / "heads.safetensors"
    kept = len(written) + (len(load_file(heads)) if heads.exists() else 0)
    left = sum(int(row["tensors"]) for row in done.rows if row["here"] == "left out")
    assert kept + left == len(parts.state)
    report = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert (report["form"], report["file"], report["tensors"]) == (form, "a.pt", done.rows)
    if save is save_training:
        assert done.rows[-1]["in the file"] == "epoch, step, name, optimizer"


def image_of(folder: Path, size: int) -> nn.Module:
    return build_vision(VisionConfig(kind="open_clip", name=str(folder)), image_size=(size, size)).eval()


@pytest.mark.parametrize("form", ["Chinese-CLIP", "RET-CLIP", "FLAIR of Xiao et al."])
def test_image_towers_are_those_of_the_program(form: str, tmp_path: Path, tokenizer: str) -> None:
    """Trap 1: QuickGELU or not, which no tensor tells: within 1e-5, since the other activation comes near."""
    parts = FORMS[form]()
    convert(save_flat(tmp_path / "a.pt", parts.state), out=tmp_path / "out", tokenizer=tokenizer)
    images = torch.randn(2, 3, SIZE, SIZE)
    parts.image.proj = None
    with torch.no_grad():
        torch.testing.assert_close(image_of(tmp_path / "out", SIZE)(images), parts.image(images), atol=1e-5, rtol=1e-5)


def test_the_image_tower_of_fundus_flair(tmp_path: Path, tokenizer: str) -> None:
    parts = checkpoints.fundus_flair()
    convert(save_flat(tmp_path / "a.pt", parts.state, prefix=""), out=tmp_path / "out", tokenizer=tokenizer)
    source = find_image(VisionConfig(kind="open_clip", name=str(tmp_path / "out")))
    shown = source.layout.input
    assert (shown.mean, shown.std, shown.size, shown.fit) == ((0.0,) * 3, (1.0,) * 3, (512, 512), "pad")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(image_of(tmp_path / "out", 64)(images), parts.image(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", ["Chinese-CLIP", "RET-CLIP", "FLAIR of fundus photographs"])
def test_text_towers_are_those_of_the_program(form: str, tmp_path: Path, tokenizer: str) -> None:
    parts = FORMS[form]()
    convert(save_flat(tmp_path / "a.pt", parts.state), out=tmp_path / "out", tokenizer=tokenizer)
    source = find_text(TextConfig(kind="open_clip", name=str(tmp_path / "out")))
    assert source.pooling == ("mean" if "fundus" in form else "cls")
    ids = torch.randint(5, 256, (3, 12))
    mask = torch.ones_like(ids)
    mask[1:, 7:] = 0
    with torch.no_grad():
        theirs = parts.text(input_ids=ids, attention_mask=mask).last_hidden_state
        own = source.load().model(input_ids=ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(own, theirs)
        config = TextConfig(kind="open_clip", name=str(tmp_path / "out"), context_length=16, pooling="cls")
        tower = build_text(config, tokenizer=build_tokenizer(config, source=source), source=source).eval()
        torch.testing.assert_close(tower(ids, mask), theirs[:, 0])


def test_the_text_tower_of_the_other_flair(tmp_path: Path, tokenizer: str) -> None:
    parts = checkpoints.other_flair()
    convert(save_flat(tmp_path / "a.pt", parts.state), out=tmp_path / "out", tokenizer=tokenizer)
    ids = torch.randint(5, 250, (3, checkpoints.CONTEXT))
    ids[:, 9] = 255  # the end of a text is its largest id
    parts.text.text_projection = None
    model = find_text(TextConfig(kind="open_clip", name=str(tmp_path / "out"))).load().model
    with torch.no_grad():
        found = model(input_ids=ids).pooler_output
        torch.testing.assert_close(found, parts.text.encode_text(ids), atol=1e-5, rtol=1e-5)


def test_chinese_clip_is_a_whole_model(tmp_path: Path, tokenizer: str) -> None:
    parts = checkpoints.chinese_clip()
    convert(save_training(tmp_path / "a.pt", parts.state), out=tmp_path / "out", tokenizer=tokenizer)
    model = find_model(str(tmp_path / "out"))
    layout, joint = model.layout, model.joint()
    assert (layout.embedding_size, layout.text_projection.sizes, joint.log_scale) == (EMBED, [WIDTH, EMBED], 3.0)
    assert ("quickgelu" in layout.image.name, layout.text.context_length) == (True, 32)
    assert (layout.image.input.size, layout.image.input.fit) == ((SIZE, SIZE), "stretch")
    torch.testing.assert_close(joint.projections["text"]["0.weight"], parts.state["text_projection"].T)
    torch.testing.assert_close(joint.projections["image"]["0.weight"], parts.state["visual.proj"].T)


def test_a_resnet_of_chinese_clip(tmp_path: Path, tokenizer: str) -> None:
    parts = checkpoints.chinese_resnet()
    convert(save_flat(tmp_path / "a.pt", parts.state), out=tmp_path / "out", tokenizer=tokenizer)
    layout = find_model(str(tmp_path / "out")).layout
    assert (layout.image.name, layout.image.input.size, layout.embedding_size) == ("resnet50_clip", (64, 64), EMBED)


def test_the_heads_of_ret_clip_are_kept(tmp_path: Path, tokenizer: str) -> None:
    parts = checkpoints.ret_clip()
    done = convert(save_flat(tmp_path / "a.pt", parts.state), out=tmp_path / "out", tokenizer=tokenizer)
    heads = load_file(tmp_path / "out" / "heads.safetensors")
    assert set(heads) == {name for name in parts.state if not name.startswith(("visual.", "bert."))}
    for name, tensor in heads.items():
        torch.testing.assert_close(tensor, parts.state[name])
    assert done.rows[-1]["part"] == "temperatures", "of a file that holds tensors alone"
    assert "with its heads it is task.model: " in done.notes[0]
    assert find_model(str(tmp_path / "out"), views=True).layout.views == ("left", "right")


@pytest.mark.parametrize("form", ["RET-CLIP", "FLAIR of fundus photographs", "FLAIR of Xiao et al."])
def test_towers_alone_are_no_whole_model(form: str, tmp_path: Path, tokenizer: str) -> None:
    done = convert(save_flat(tmp_path / "a.pt", FORMS[form]().state), out=tmp_path / "out", tokenizer=tokenizer)
    assert "use it as task.vision and task.text" in done.notes[-1]
    with pytest.raises(ConfigError, match=r"two towers, but no projections that fit: .* Take the towers by") as caught:
        find_model(str(tmp_path / "out"))
    assert ("Or set task.views, which takes its heads" in str(caught.value)) == (form == "RET-CLIP")
    if form != "RET-CLIP":
        with pytest.raises(ConfigError, match="two towers, but no projections that fit"):
            find_model(str(tmp_path / "out"), views=True)


def test_a_tokenizer_of_a_word_list(tmp_path: Path) -> None:
    """RET-CLIP's repository has its own as vocab.txt."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dru", "##sen", "黄", "斑", "."]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    file = save_flat(tmp_path / "a.pt", checkpoints.ret_clip().state)
    convert(file, out=tmp_path / "out", tokenizer=str(tmp_path / "vocab.txt"))
    config = TextConfig(kind="open_clip", name=str(tmp_path / "out"), context_length=16)
    tokens = build_tokenizer(config, source=find_text(config))
    assert (tokens.encode(["Drusen 黄斑."]), tokens.pad_id) == ([[2, 5, 6, 7, 8, 9, 3]], 0)


def test_a_tokenizer_with_more_words_than_the_tower(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(str, range(300))]))
    file = save_flat(tmp_path / "a.pt", checkpoints.ret_clip().state)
    with pytest.raises(ConfigError, match="has 304 tokens, the text tower embeddings of 256"):
        convert(file, out=tmp_path / "out", tokenizer=str(tmp_path / "vocab.txt"))
    with pytest.raises(ConfigError, match=r"none\.txt does not exist"):
        convert(file, out=tmp_path / "out", tokenizer=str(tmp_path / "none.txt"))
    assert not (tmp_path / "out").exists()


def test_any_other_file_is_written_as_it_is(tmp_path: Path) -> None:
    whole = checkpoints.vit(quick=False)
    done = convert(save_training(tmp_path / "a.pt", whole.state_dict()), out=tmp_path / "out")
    assert done.form == "other"
    assert "is none of RET-CLIP, Chinese-CLIP" in done.notes[0]
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(whole.state_dict())


@pytest.mark.parametrize(
    ("form", "without", "message"),
    [
        ("Chinese-CLIP", "visual.transformer.resblocks.0.attn.", "looks like Chinese-CLIP, but is not: .*Missing key"),
        ("Chinese-CLIP", "visual.conv1.", r"lacks the tensor 'visual\.conv1\.weight'"),
        ("RET-CLIP", "bert.encoder.layer.1.", "but lacks .* tensors of its text tower"),
        ("RET-CLIP", "bert.embeddings.word", "has no tensor 'embeddings.word_embeddings.weight'"),
        ("FLAIR of fundus photographs", "vision_model.model.layer2.1.", "a ResNet of .* blocks, or none"),
        ("FLAIR of Xiao et al.", "transformer.resblocks.0.ln_1.", "lacks 2 tensors of its text tower"),
    ],
)
def test_what_lacks_a_part_is_refused(form: str, without: str, message: str, tmp_path: Path, tokenizer: str) -> None:
    state = {name: tensor for name, tensor in FORMS[form]().state.items() if not name.startswith(without)}
    with pytest.raises(WeightsError, match=message):
        convert(save_flat(tmp_path / "a.pt", state), out=tmp_path / "out", tokenizer=tokenizer)
    assert not list(tmp_path.glob("*out*"))


@dataclasses.dataclass
class Settings:
    """What a training might keep beside its weights."""

    rate: float = 0.1


def test_objects_are_refused_and_left_out_when_they_are_named(tmp_path: Path, tokenizer: str) -> None:
    file = save_training(tmp_path / "a.pt", checkpoints.chinese_clip().state, settings=Settings(), args={"lr": 1.0})
    name = f"{Settings.__module__}.Settings"
    with pytest.raises(WeightsError, match=rf"is refused: .*{name}.* --ignore {name}"):
        convert(file, out=tmp_path / "out", tokenizer=tokenizer)
    done = convert(file, out=tmp_path / "out", tokenizer=tokenizer, ignored=[name])
    assert done.form == "Chinese-CLIP"


def make(file: str) -> None:
    Path(file).touch()


class Trap:
    """What would write a file when it is loaded."""

    def __init__(self, call: Callable[..., Any], file: Path) -> None:
        self.call, self.file = call, file

    def __reduce__(self) -> Any:
        return self.call, (str(self.file),)


def test_what_is_left_out_never_runs(tmp_path: Path, tokenizer: str) -> None:
    made = tmp_path / "made"
    file = save_training(tmp_path / "a.pt", checkpoints.chinese_clip().state, trap=Trap(make, made))
    convert(file, out=tmp_path / "out", tokenizer=tokenizer, ignored=[f"{make.__module__}.make"])
    assert not made.exists()


def test_what_reaches_the_machine_is_refused_even_when_it_is_named(tmp_path: Path) -> None:
    made = tmp_path / "made"
    file = save_training(tmp_path / "a.pt", checkpoints.chinese_clip().state, trap=Trap(os.mkdir, made))
    with pytest.raises(WeightsError, match=r"posix\.mkdir is used in it in a way that cannot be left out"):
        convert(file, out=tmp_path / "out", ignored=["posix.mkdir"])
    assert not made.exists()


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"a whole module, .* torch\.save\(model\.state_dict\(\), FILE\)") as refused:
        convert(tmp_path / "a.pt", out=tmp_path / "out")
    assert "--ignore" not in str(refused.value)


def test_nothing_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="out exists"):
        convert(save_flat(tmp_path / "a.pt", checkpoints.ret_clip().state), out=tmp_path / "out")


def test_the_command(tmp_path: Path, tokenizer: str) -> None:
    file = save_training(tmp_path / "epoch_latest.pt", checkpoints.ret_clip().state)
    arguments = ["models", "convert", str(file), "--out", str(tmp_path / "out"), "--tokenizer", tokenizer]
    run = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert run.exit_code == 0
    for words in ("epoch_latest.pt: RET-CLIP", "image tower", "text.transformer.", "heads.safetensors: logit_scale"):
        assert words in run.output
