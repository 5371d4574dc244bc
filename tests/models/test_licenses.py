"""Where licences are read: timm's list, cards of every kind, bundles; and what is unknown."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import transformers
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import save_file

from consilium.core.licenses import License
from consilium.models.config import TextConfig, VisionConfig
from consilium.models.licenses import card_licenses, file_licenses, timm_license
from consilium.models.text import build_text
from consilium.models.vision import build_vision
from tests.models.checkpoints.writers import clip_hf, clip_open
from tests.models.texts import caption_tokenizer, write_encoder

MODEL = "test_resnet"
NC = License(source="elsewhere", name="cc-by-nc-4.0", read_from="timm")


def card(*lines: str) -> str:
    return "\n".join(["---", *lines, "---", "# A model", "license: not here"])


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (card("license: mit"), ["mit"]),
        (card("tags: [x]", "license : 'Apache-2.0'  # as its paper says", "model-index: []"), ["Apache-2.0"]),
        (card("license: [mit, cc-by-nc-4.0, mit]"), ["mit", "cc-by-nc-4.0"]),
        (card("license:", "- mit", "- other", "license_name: some-terms"), ["mit", "some-terms"]),
        (card("license:", "  - mit"), ["mit"]),
        (card("license: other", "license_name: health-ai-developer-foundations"), ["health-ai-developer-foundations"]),
        (card("license: other"), ["other"]),
        (card("license: >", "  for research", "  alone"), ["for research alone"]),
        (card("license: mit", "broken: [1, 2", "also: {"), ["mit"]),
        (f"\ufeff{card('license: mit')}".replace("\n", "\r\n"), ["mit"]),
        (card(f"license: {'x' * 300}"), ["x" * 120 + "…"]),
        ("---\nlicense: mit\n...\n", ["mit"]),
        # of these nothing is known
        ("", []),
        ("# A model\nlicense: mit", []),
        ("---\nlicense: mit\n", []),
        (card(), []),
        (card("license: unknown"), []),
        (card("license:"), []),
        (card("license: ''"), []),
        (card("license: []"), []),
        (card("license: [mit, 7]"), []),
        (card("license: {name: mit}"), []),
        (card("license: 2.0"), []),
        (card("license: no"), []),
        (card("license: [mit"), []),
        (card("license: mit", "license: cc-by-nc-4.0"), []),
        (card("license: &a [*a]"), []),
        (card("license: !!bool maybe"), []),
        (card("license: !!python/object/apply:os.system [ls]"), []),
        (card("nested:", "  license: mit"), []),
        (card("license_name: mine"), []),
    ],
)
def test_cards(text: str, names: list[str]) -> None:
    assert card_licenses(text) == names


@given(st.text() | st.text(alphabet="license_name: -\n[]{}&*!>|'\"#mit,.").map(card))
@example(card("license: !!timestamp x"))
@example(card("license: 2024-13-45"))
def test_no_card_is_too_odd(text: str) -> None:
    for name in card_licenses(text):
        assert name == " ".join(name.split())
        assert name


@pytest.mark.parametrize("model", [*timm.list_pretrained("*dinov3*")[:1], "resnet50", "test_resnet"])
def test_timm_names_the_licences_of_its_weights(model: str) -> None:
    cfg = timm.get_pretrained_cfg(model)
    found = timm_license(cfg.to_dict())
    assert (found.source, found.name, found.read_from) == (f"{cfg.architecture}.{cfg.tag}", cfg.license, "timm")


@pytest.mark.parametrize("license", [None, "unknown"])
def test_where_timm_names_none_it_is_unknown(license: str | None) -> None:
    found = timm_license({"architecture": "odd", "license": license})
    assert (found.source, found.name, found.read_from) == ("odd", None, "timm names none")


def test_the_bundle_comes_before_the_card_and_the_card_before_the_config(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")

    def found() -> list[tuple[str, str | None, str]]:
        assert file_licenses(file, source="here") == file_licenses(tmp_path, source="here")
        return [(one.source, one.name, one.read_from) for one in file_licenses(file, source="here")]

    assert found() == [("here", None, "no README.md lies beside it")]
    (tmp_path / "README.md").write_text("# no metadata")
    assert found() == [("here", None, "its README.md names none")]
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"license": "apache-2.0"}}))
    assert found() == [("here", "apache-2.0", "config.json")]
    (tmp_path / "README.md").write_text(card("license: [mit, other]"))
    assert found() == [("here", "mit", "README.md"), ("here", "other", "README.md")]
    (tmp_path / "bundle.json").write_text(json.dumps({"licenses": [NC.model_dump()]}))
    assert found() == [("elsewhere", "cc-by-nc-4.0", "timm")]
    (tmp_path / "bundle.json").write_text(json.dumps({"licenses": []}))
    assert found() == [], "a bundle that started from random weights"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{}", "its bundle is of a version that did not record licences"),
        ('{"licenses": null}', "its bundle is of a version that did not record licences"),
        ('{"licenses": [{"name": "mit"}]}', "its bundle.json cannot be read"),
        ('{"licenses": "mit"}', "its bundle.json cannot be read"),
        ("[]", "its bundle.json cannot be read"),
        ("{", "its bundle.json cannot be read"),
        ("[" * 100_000, "its bundle.json cannot be read"),
    ],
)
def test_a_bundle_that_does_not_say_is_unknown(content: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text(content)
    (tmp_path / "README.md").write_text(card("license: mit"))  # of whoever published the bundle
    assert file_licenses(tmp_path, source="here") == [License(source="here", name=None, read_from=why)]


def test_a_checkpoint_has_the_licences_of_its_run(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text(json.dumps({"licenses": [NC.model_dump()]}))
    checkpoint = tmp_path / "checkpoints" / "best-00000002" / "model.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"")
    assert file_licenses(checkpoint, source="here") == [NC]


@pytest.mark.parametrize("name", ["README.md", "config.json"])
def test_what_is_no_text_file_is_passed_by(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\xff\xfe\x00---\nlicense: mit")
    assert file_licenses(tmp_path, source="here")[0].name is None
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    assert file_licenses(tmp_path, source="here")[0].name is None
    (tmp_path / name).rmdir()
    os.mkfifo(tmp_path / name)  # nobody will ever write into it
    assert file_licenses(tmp_path, source="here")[0].name is None


# --- towers ----------------------------------------------------------------------------------------------------------


def weights_folder(folder: Path, *lines: str) -> Path:
    folder.mkdir()
    save_file(timm.create_model(MODEL, num_classes=0).state_dict(), folder / "model.safetensors")
    if lines:
        (folder / "README.md").write_text(card(*lines))
    return folder


def vision_licenses(*, weights: bool = True, **options: Any) -> list[tuple[str, str | None, str]]:
    tower = build_vision(VisionConfig(**{"name": MODEL, **options}), image_size=(32, 32), weights=weights)
    return [(license.source, license.name, license.read_from) for license in tower.licenses]


def test_an_image_tower_has_the_licences_of_its_weights(tmp_path: Path) -> None:
    bare, folder = str(weights_folder(tmp_path / "bare")), str(weights_folder(tmp_path / "nc", "license: cc-by-nc-4.0"))
    assert vision_licenses(pretrained=folder) == [(folder, "cc-by-nc-4.0", "README.md")]
    file = f"{folder}/model.safetensors"
    assert vision_licenses(pretrained=file) == [(file, "cc-by-nc-4.0", "README.md")]
    assert vision_licenses(pretrained=bare) == [(bare, None, "no README.md lies beside it")]
    assert vision_licenses(pretrained=bare, license="mit") == [(bare, "mit", "task.vision.license")]
    assert vision_licenses(pretrained=folder, weights=False, license="mit") == []
    assert vision_licenses(pretrained=False) == []


def test_weights_of_the_hub_have_the_licence_that_timm_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = timm.get_pretrained_cfg(MODEL)
    repository = tmp_path / f"models--{cfg.hf_hub_id.replace('/', '--')}"
    (repository / "snapshots").mkdir(parents=True)
    weights_folder(repository / "snapshots" / "1a2b")
    save_file(timm.create_model(MODEL).state_dict(), repository / "snapshots" / "1a2b" / "model.safetensors")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1a2b")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert cfg.license is not None
    assert vision_licenses(pretrained=True) == [(f"{MODEL}.{cfg.tag}", cfg.license, "timm")]


def text_licenses(**options: Any) -> list[tuple[str, str | None, str]]:
    config = TextConfig(context_length=32, **options)
    tower = build_text(config, tokenizer=caption_tokenizer())
    return [(license.source, license.name, license.read_from) for license in tower.licenses]


def test_a_text_tower_has_the_licences_of_its_weights(tmp_path: Path) -> None:
    encoder, other = write_encoder(tmp_path / "encoder"), tmp_path / "other"
    (encoder / "README.md").write_text(card("license: other", "license_name: mine"))
    other.mkdir()
    (encoder / "model.safetensors").rename(other / "model.safetensors")
    (encoder / "model.safetensors").symlink_to(other / "model.safetensors")
    assert text_licenses(name=str(encoder)) == [(str(encoder), "mine", "README.md")]
    assert text_licenses(name=str(encoder), pretrained=False) == []
    unknown = "no README.md lies beside it"
    assert text_licenses(name=str(encoder), pretrained=str(other)) == [(str(other), None, unknown)]
    stated = text_licenses(name=str(encoder), pretrained=str(other), license="mit")
    assert stated == [(str(other), "mit", "task.text.license")]
    assert text_licenses(name="tiny", pretrained=False) == []


def test_the_card_of_the_hub_is_fetched_with_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = write_encoder(tmp_path / "encoder")
    (encoder / "README.md").write_text(card("license: cc-by-nc-4.0"))
    wanted: list[str] = []

    def download(name: str, *, allow_patterns: list[str]) -> str:
        wanted.extend(allow_patterns)
        return str(encoder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert text_licenses(name="org/bert") == [("org/bert", "cc-by-nc-4.0", "README.md")]
    assert "README.md" in wanted


@pytest.mark.parametrize(("kind", "write"), [("open_clip", clip_open), ("hf", clip_hf)])
def test_both_towers_of_a_whole_model_have_its_licence(kind: Any, write: Any, tmp_path: Path) -> None:
    folder = write(tmp_path).folder
    (folder / "README.md").write_text(card("license: cc-by-nc-4.0"))
    named = {"kind": kind, "name": str(folder)}
    for licenses in (vision_licenses, text_licenses):
        assert licenses(**named) == [(str(folder), "cc-by-nc-4.0", "README.md")]
        assert licenses(**named, pretrained=False) == []
    (folder / "README.md").unlink()
    assert vision_licenses(**named, license="mit") == [(str(folder), "mit", "task.vision.license")]
    assert text_licenses(**named, license="mit") == [(str(folder), "mit", "task.text.license")]


def test_weights_in_place_of_a_folder_s_have_a_licence_of_their_own(tmp_path: Path) -> None:
    folder, other = clip_open(tmp_path / "model").folder, clip_open(tmp_path / "other").folder
    (folder / "README.md").write_text(card("license: mit"))
    (other / "README.md").write_text(card("license: cc-by-nc-4.0"))
    own = {"kind": "open_clip", "name": str(folder), "pretrained": f"{other}/open_clip_model.safetensors"}
    assert vision_licenses(**own) == [(own["pretrained"], "cc-by-nc-4.0", "README.md")]


def test_a_model_of_images_alone_has_the_licence_of_its_card(tmp_path: Path) -> None:
    size = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.ViTModel(transformers.ViTConfig(**size, image_size=32, patch_size=16)).save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text(card("license: apache-2.0"))
    assert vision_licenses(kind="hf", name=str(tmp_path)) == [(str(tmp_path), "apache-2.0", "README.md")]


@pytest.mark.parametrize("has_card", [True, False])
def test_the_card_of_weights_that_open_clip_names_is_fetched_beside_them(
    has_card: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = clip_open(tmp_path).folder
    described = json.loads((folder / "open_clip_config.json").read_text())

    def download(repository: str, name: str) -> None:
        assert (repository, name) == ("org/tiny", "README.md")
        if not has_card:
            raise OSError("not there")
        (folder / name).write_text(card("license: mit"))

    monkeypatch.setattr("open_clip.list_models", lambda: ["Tiny"])
    monkeypatch.setattr("open_clip.get_model_config", lambda name: described["model_cfg"])
    monkeypatch.setattr("open_clip.get_pretrained_cfg", lambda name, tag: {"hf_hub": "org/tiny/"})
    monkeypatch.setattr("open_clip.download_pretrained", lambda config: str(folder / "open_clip_model.safetensors"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    expected = ("mit", "README.md") if has_card else (None, "no README.md lies beside it")
    assert vision_licenses(kind="open_clip", name="Tiny/tag") == [("Tiny/tag", *expected)]


@pytest.mark.parametrize("tower", [VisionConfig, TextConfig])
def test_a_licence_without_weights_is_refused(tower: Any) -> None:
    with pytest.raises(ValidationError, match="license is mit, but pretrained is false"):
        tower(name="bert", pretrained=False, license="mit")
