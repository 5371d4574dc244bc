"""``data prepare``, ``inspect``, ``stats`` and ``embed``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from consilium.core.config import to_yaml
from tests.cli.conftest import Cli
from tests.conftest import ImageFolder
from tests.tasks.test_fuse_contract import experiment_of


def test_prepare_twice_has_nothing_to_do(cli: Cli, recipe: Path) -> None:
    first, again = cli("data", "prepare", recipe), cli("data", "prepare", recipe)
    assert (first.code, again.code) == (0, 0)
    (store,) = (path.parent for path in (recipe.parent / "stores").rglob("store.json"))
    assert first.out.splitlines()[-1] == f"prepared: {store}"
    assert again.out.splitlines()[-1] == f"unchanged: {store}"
    row = next(line.split() for line in first.out.splitlines() if line.split()[:1] == ["images"])
    assert row[1:4] == ["24", "12", "12"]


def test_training_uses_what_was_prepared(cli: Cli, recipe: Path) -> None:
    assert cli("data", "prepare", recipe).code == 0
    assert "48 cases (unchanged)" in cli("train", recipe, "--dry-run").out


def test_inspect_counts_and_draws(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    answer = cli("data", "inspect", recipe, "--out", tmp_path / "look")
    assert answer.code == 0
    with Image.open(tmp_path / "look" / "contact_sheet.png") as sheet:
        assert min(sheet.size) > 100
    found = json.loads((tmp_path / "look" / "inspection.json").read_text(encoding="utf-8"))
    assert (found["cases"], found["images"]) == (48, 48)
    assert {(row["label"], row["split"]): row["cases"] for row in found["counts"]}["ct", "train"] == 8
    assert "40 x 32" in answer.out
    assert answer.out.splitlines()[-1] == f"contact sheet: {tmp_path / 'look' / 'contact_sheet.png'}"


def test_inspect_finds_duplicates_and_leaks(cli: Cli, recipe: Path, tmp_path: Path, image_folder: ImageFolder) -> None:
    images = image_folder()
    (images / "test" / "ct" / "copy.jpg").write_bytes((images / "train" / "ct" / "000.jpg").read_bytes())
    answer = cli("data", "inspect", recipe, f"data.sources.0.path={images}", "--out", tmp_path / "look")
    assert answer.code == 0
    (duplicate,) = [line for line in answer.out.splitlines() if line.startswith("duplicate: ")]
    assert duplicate.endswith("(in train, test)")
    assert str(images / "test" / "ct" / "copy.jpg") in duplicate
    assert str(images / "train" / "ct" / "000.jpg") in duplicate
    assert "leak: the same file is in train and test" in answer.out


def test_stats_are_those_of_the_training_pixels(cli: Cli, recipe: Path, tiny_images: Path) -> None:
    answer = cli("data", "stats", recipe)
    assert answer.code == 0
    pixels_PC = np.concatenate(
        [np.asarray(Image.open(path)).reshape(-1, 3) for path in sorted((tiny_images / "train").rglob("*.jpg"))]
    )
    assert f"24 images, {len(pixels_PC)} pixels" in answer.out
    for name, expected_C in (("mean", pixels_PC.mean(0) / 255), ("std", pixels_PC.std(0) / 255)):
        found = re.search(rf"{name}: \[(.*)\]", answer.out)
        assert found is not None
        np.testing.assert_allclose([float(part) for part in found[1].split(",")], expected_C, atol=0.003)


def test_stats_are_those_of_the_cases_that_the_filters_keep(cli: Cli, recipe: Path, tiny_images: Path) -> None:
    answer = cli("data", "stats", recipe, "data.filters.labels=[ct, mri]")
    pixels_PC = np.concatenate(
        [np.asarray(Image.open(path)).reshape(-1, 3) for path in sorted(tiny_images.glob("train/[cm]*/*.jpg"))]
    )
    assert f"16 images, {len(pixels_PC)} pixels" in answer.out


def test_stats_per_node_can_be_pasted_into_the_config(cli: Cli, recipe: Path) -> None:
    names = "data.rename_labels={ct: rad.cmp, mri: rad.mri}"
    answer = cli("data", "stats", recipe, names, "--per-node")
    assert answer.code == 0, answer.err
    text = answer.out[answer.out.index("task:") :]
    found = yaml.safe_load(text)["task"]["tree"]["statistics"]
    assert list(found) == ["root", "rad"]
    for node, filters in (("root", "{}"), ("rad", "{labels: [rad]}")):
        alone = cli("data", "stats", recipe, names, f"data.filters={filters}").out
        for name in ("mean", "std"):
            assert f"{name}: [{', '.join(f'{value:.4f}' for value in found[node][name])}]" in alone


@pytest.mark.parametrize("command", [["data", "inspect", "x.yaml"], ["demo"]])
def test_a_bucket_is_no_place_for_pictures_and_runs(cli: Cli, command: list[str]) -> None:
    answer = cli(*command, "--out", "gs://bucket/look")
    assert (answer.code, "gs://bucket/look, an address" in answer.err) == (2, True)


def test_export_and_train_on_it(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "cases.jsonl"
    answer = cli("data", "export", recipe, "--out", out)
    assert answer.code == 0
    assert answer.out.splitlines()[-1] == f"48 cases, to be read with kind: jsonl: {out}"
    source = f"data.sources=[{{kind: jsonl, name: again, path: {out}}}]"
    row = next(line.split() for line in cli("data", "prepare", recipe, source).out.splitlines() if "again" in line)
    assert row[:4] == ["again", "24", "12", "12"]
    refused = cli("data", "export", recipe, "--out", out)
    assert (refused.code, "--overwrite" in refused.err) == (2, True)
    some = cli("data", "export", recipe, "--out", out, "--split", "val", "--split", "test", "--overwrite")
    assert some.out.splitlines()[-1].startswith("24 cases")


def test_export_says_what_it_cannot_write(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    answer = cli("data", "export", recipe, "--out", tmp_path / "cases.xlsx")
    assert answer.code == 2
    assert "expected .jsonl, .parquet, .tsv, .lmdb, or give --format" in answer.err
    assert not list(tmp_path.rglob("store.json")), "it is said before anything is prepared"


def test_prepare_says_what_it_skipped(cli: Cli, recipe: Path, image_folder: ImageFolder) -> None:
    images = image_folder()
    for name in ("a.txt", "b.txt", ".hidden"):
        (images / "train" / name).write_text("x", encoding="utf-8")
    answer = cli("data", "prepare", recipe, f"data.sources.0.path={images}")
    assert "images: skipped 2 x .txt file, 1 x hidden" in answer.out.splitlines()


@pytest.mark.parametrize("command", ["prepare", "inspect", "stats"])
def test_bad_rows_are_named(cli: Cli, recipe: Path, command: str, image_folder: ImageFolder) -> None:
    images = image_folder()
    (images / "train" / "ct" / "bad.jpg").write_text("not a picture", encoding="utf-8")
    arguments = ["data", command, recipe, f"data.sources.0.path={images}"]
    answer = cli(*arguments)
    assert answer.code == 2
    assert "1 row is bad" in answer.err
    assert "bad.jpg" in answer.err
    if command == "prepare":
        answer = cli(*arguments, "data.on_bad_row=quarantine")
        assert answer.code == 0
        assert re.search(r"1 bad row left out; .*quarantine.csv lists them", answer.out)


def test_export_writes_what_training_would_see(cli: Cli, recipe: Path, tiny_images: Path, tmp_path: Path) -> None:
    out = tmp_path / "cases.jsonl"
    chosen = ["data.filters.labels=[ct]", "data.split.folds=2", "data.split.fold=0", "--out", out, "--split", "test"]
    answer = cli("data", "export", recipe, f"data.sources.0.path={tiny_images}", *chosen)
    assert answer.code == 0, answer.out
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert {(row["label"], row["split"]) for row in rows} == {("ct", "test")}
    assert len(rows) == 8, "half of the 16 cases of ct"
    assert "data.filters.labels leaves out" in answer.out


RENAMED = "data.rename_labels={ct: rad.cmp, mri: rad.mri, xray: rad.xra}"


def test_every_command_sees_the_renamed_labels(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    answer = cli("data", "inspect", recipe, RENAMED, "--out", tmp_path / "look")
    found = json.loads((tmp_path / "look" / "inspection.json").read_text(encoding="utf-8"))
    assert {row["label"] for row in found["counts"]} == {"rad.cmp", "rad.mri", "rad.xra"}, answer.err
    assert cli("data", "export", recipe, RENAMED, "--out", tmp_path / "cases.jsonl").code == 0
    rows = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["label"] for row in rows} == {"rad.cmp", "rad.mri", "rad.xra"}
    assert "16 images" in cli("data", "stats", recipe, RENAMED, "data.filters.labels=[rad.cmp, rad.xra]").out
    unknown = cli("data", "prepare", recipe, "data.rename_labels={xrai: rad.xra}")
    assert (unknown.code, "the label 'xrai', which no case has; did you mean `xray`" in unknown.err) == (2, True)
    answer = cli("crossval", recipe, RENAMED, "data.filters.labels=[rad.xra]", "--leave-out", "source,label")
    assert answer.code == 2
    assert "there is only: images, rad.xra." in answer.err


def test_a_bundle_is_judged_under_the_renamed_labels(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    trained = cli("train", recipe, RENAMED, "trainer.max_epochs=1")
    assert trained.code == 0, trained.err
    bundle = Path(trained.out.splitlines()[-1].removeprefix("finished: "))
    assert json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["knowledge"]["labels"] == [
        "rad.cmp",
        "rad.mri",
        "rad.xra",
    ]
    answer = cli("evaluate", bundle, "--out", tmp_path / "again")
    assert answer.code == 0, answer.err
    again, then = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path / "again", bundle))
    assert again["test"] == then["test"]


def test_embed_says_how_many_it_computed_and_found(cli: Cli, tmp_path: Path) -> None:
    config, frozen = tmp_path / "fused.yaml", ["task.text.freeze.kind=tower", "trainer.max_epochs=1"]
    config.write_text(to_yaml(experiment_of(tmp_path, *frozen)), encoding="utf-8")
    first, again = cli("data", "embed", config), cli("data", "embed", config)
    assert (first.code, again.code) == (0, 0)
    assert first.out.splitlines()[-1].startswith(f"texts: 77 computed, 0 were there, in {tmp_path / 'stores'}")
    assert again.out.splitlines()[-1].startswith("texts: 0 computed, 77 were there, in ")
    refused = cli("data", "embed", config, "task.text.freeze.kind=none")
    assert refused.code != 0
    assert "no tower of this task stays frozen" in refused.err
