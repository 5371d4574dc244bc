"""Models are fetched from a hub into a folder, and used from there where no hub is: by path, and by their names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from consilium.core.errors import ConfigError, WeightsError
from consilium.experiment import Experiment
from consilium.models import hub
from consilium.models.carrying import fetch_model, repository_of
from consilium.models.catalogue import CATALOGUE
from consilium.models.checkpoints.find import find_model, find_text
from consilium.models.config import SHORT_TEXTS, TextConfig, VisionConfig
from consilium.models.licenses import timm_license
from consilium.models.timm_models import SHORT_NAMES
from consilium.models.vision import build_vision
from tests.hub import local_hub
from tests.models.checkpoints.writers import biomed_open, clip_hf
from tests.models.texts import write_encoder
from tests.policy.source import REPOSITORY
from tests.tiny import TrainTiny

TIMM, BERT, WHOLE, DUAL = "timm/test_resnet.r160_in1k", "lab/bert", "lab/whole", "lab/clip"
CARD = "---\nlicense: mit\n---\nA model.\n"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the hub has: a tower of timm, a BERT, a model of open_clip whose tokenizer is another's, and a CLIP."""
    root = tmp_path_factory.mktemp("house")
    (root / TIMM).mkdir(parents=True)
    torch.manual_seed(5)
    model = timm.create_model("test_resnet")
    save_file(model.state_dict(), root / TIMM / "model.safetensors")
    (root / TIMM / "pytorch_model.bin").write_bytes(b"the same once more")
    described = {"architecture": "test_resnet", "pretrained_cfg": {"license": "apache-2.0", "classifier": "fc"}}
    (root / TIMM / "config.json").write_text(json.dumps(described), encoding="utf-8")
    write_encoder(root / BERT)
    (root / BERT / "flax_model.msgpack").write_bytes(b"of another library")
    biomed_open(root / WHOLE)
    config = json.loads((root / WHOLE / "open_clip_config.json").read_text(encoding="utf-8"))
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = BERT
    (root / WHOLE / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (root / WHOLE / name).unlink(missing_ok=True)
    clip_hf(root / DUAL)
    for name in (BERT, WHOLE, DUAL):
        (root / name / "README.md").write_text(CARD, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def fetched(house: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder that ``consilium models fetch`` filled, in a process of its own, and what it printed."""
    to = tmp_path_factory.mktemp("fetched") / "models"
    with local_hub(house) as address:
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        environment |= {"HF_ENDPOINT": address, "HF_HOME": str(to.parent / "home")}
        code = "from consilium.cli import main; main()"
        words = [sys.executable, "-c", code, "models", "fetch", "test_resnet", BERT, f"hf-hub:{WHOLE}", DUAL, "--to"]
        done = subprocess.run([*words, str(to)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return to, done.stdout.splitlines()


@pytest.fixture
def no_hub(fetched: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The fetched folder on a machine where nothing is cached, and whoever asks the network fails."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("consilium.models.hub.get_session", lambda: pytest.fail("the hub was asked"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return fetched[0]


def test_what_is_fetched(fetched: tuple[Path, list[str]]) -> None:
    to, printed = fetched
    assert sorted(path.name for path in (to / TIMM).iterdir()) == ["config.json", "model.safetensors"]
    assert "flax_model.msgpack" not in {path.name for path in (to / BERT).iterdir()}
    for name, key in ((BERT, "task.text.name"), (WHOLE, "task.model"), (DUAL, "task.model")):
        assert (to / name / "README.md").read_text(encoding="utf-8") == CARD
        (line,) = [line for line in printed if line.endswith(f": {key}={to / name}")]
        assert "licence mit)" in line
    assert printed[0].startswith(
        f"test_resnet is in {to / TIMM} (2 MB, licence apache-2.0): task.vision.name=test_resnet"
    )
    assert not [path for path in to.rglob("*") if path.is_symlink() or path.name == ".cache"]


def test_by_name_from_the_folder(no_hub: Path, house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_MODELS", str(no_hub))
    images = torch.rand(2, 3, 32, 32)
    tower = build_vision(VisionConfig(name="test_resnet"), image_size=(32, 32)).eval()
    torch.manual_seed(5)
    expected = timm.create_model("test_resnet").eval()
    assert torch.equal(tower(images), expected.forward_head(expected.forward_features(images), pre_logits=True))
    assert [(license.source, license.name) for license in tower.licenses] == [("test_resnet", "apache-2.0")]
    text = find_text(TextConfig(name=BERT))
    assert text.load().model.config.hidden_size == 32
    assert text.tokenizer() == find_text(TextConfig(name=str(house / BERT))).tokenizer()
    for name in (f"hf-hub:{WHOLE}", DUAL):
        model = find_model(name)
        assert model.tokenizer()[0]
        assert model.joint().projections
        assert model.text().licenses[0].name == "mit"
    whole = find_model(WHOLE)
    assert whole.tokenizer()[0] == text.tokenizer()[0], "the tokenizer of another model came along"


def test_a_training_begins_with_carried_weights(no_hub: Path, tiny: TrainTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_MODELS", str(no_hub))
    run = tiny("task.vision.pretrained=true", "optimizer.learning_rate=1e-9")
    torch.manual_seed(5)
    expected = timm.create_model("test_resnet").state_dict()
    first = next(iter(expected))
    torch.testing.assert_close(run.weights[f"tower.model.{first}"], expected[first], rtol=0, atol=1e-6)
    assert [license["name"] for license in run.manifest["licenses"]] == ["apache-2.0"]


def test_by_path_as_it_is(no_hub: Path) -> None:
    config = VisionConfig(name="test_resnet", pretrained=str(no_hub / TIMM))
    assert build_vision(config, image_size=(32, 32)).num_features > 0
    assert find_text(TextConfig(name=str(no_hub / BERT))).load().model
    for name in (WHOLE, DUAL):
        model = find_model(str(no_hub / name))
        assert model.tokenizer()[0]
        assert model.image(image_size=(32, 32)).model


def test_a_model_that_is_there_stays(no_hub: Path) -> None:
    before = (no_hub / BERT / "model.safetensors").stat().st_mtime_ns
    again = fetch_model(BERT, to=no_hub)
    assert (again.created, again.licenses) == (False, ("mit",))
    assert "was there already" in str(again)
    assert (no_hub / BERT / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("given", [False, True])
def test_errors_say_how_to_carry(
    fetched: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    if given:
        monkeypatch.setenv("CONSILIUM_MODELS", str(fetched[0]))
    for name, ask in (
        ("test_vit", lambda: build_vision(VisionConfig(name="test_vit"), image_size=(160, 160))),
        ("lab/other", lambda: find_text(TextConfig(name="lab/other")).load()),
        ("lab/other", lambda: find_model("hf-hub:lab/other")),
        ("lab/other", lambda: build_vision(VisionConfig(kind="hf", name="lab/other"), image_size=(32, 32))),
        ("ViT-B-32/openai", lambda: find_model("ViT-B-32/openai").joint()),
    ):
        with pytest.raises(WeightsError) as caught:
            ask()
        assert f"`consilium models fetch {name} --to FOLDER` fetches it" in str(caught.value)
        assert "with --from FOLDER, or as CONSILIUM_MODELS" in str(caught.value)
        assert (f"{fetched[0]} (--from) does not hold it" in str(caught.value)) is given


def test_a_name_of_open_clip_is_found_by_its_repository(
    no_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(no_hub / WHOLE, tmp_path / "own" / "laion" / "CLIP-ViT-B-32-laion2B-s34B-b79K")
    monkeypatch.setenv("CONSILIUM_MODELS", str(tmp_path / "own"))
    assert find_model("ViT-B-32/laion2b_s34b_b79k").joint().projections
    again = fetch_model("ViT-B-32/laion2b_s34b_b79k", to=tmp_path / "own")
    assert (again.repository, again.created) == ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", False)


def test_what_cannot_be_fetched(no_hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, error, message in (
        ("lab/other", WeightsError, r"'lab/other' cannot be had from the hub \(HF_HUB_OFFLINE is set.*Check its name"),
        ("resnet5o", ConfigError, "'resnet5o' is no model on the hub"),
        (str(no_hub / BERT), ConfigError, "is a path of this machine; copy it"),
    ):
        with pytest.raises(error, match=message):
            fetch_model(name, to=tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_folder_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONSILIUM_MODELS", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"--from \(CONSILIUM_MODELS\) is .*none, which is no folder"):
        hub.carried("a/b")


def test_the_list_is_what_recipes_use_and_the_short_names() -> None:
    used: dict[str, set[str]] = {}
    for path in sorted((REPOSITORY / "recipes").glob("*.yaml")):
        task = Experiment.load(str(path)).task.model_dump()
        towers = [task[key] for key in ("vision", "text") if task.get(key) and task[key]["pretrained"] is True]
        model = task.get("model")
        names = [model["name"]] if isinstance(model, dict) else [tower["name"] for tower in towers]
        for name in names:
            used.setdefault(name, set()).add(path.stem)
    assert {one.name: set(one.recipes) for one in CATALOGUE if one.recipes} == used
    assert [one.name for one in CATALOGUE if not one.recipes] == list(SHORT_TEXTS)
    for one in CATALOGUE:
        assert one.repository == repository_of(one.name)
        if timm.is_model(SHORT_NAMES.get(one.name, one.name)):
            with torch.device("meta"):
                model = timm.create_model(SHORT_NAMES.get(one.name, one.name))
            size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()) / 1e6
            assert one.megabytes == round(size), one.name
            assert one.license == timm_license(dict(model.pretrained_cfg)).name
