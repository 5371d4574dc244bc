"""Augmentation, images, mixtures, stores and loaders: each option trains, and does what its name says."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from consilium.core.errors import BadRowsError, ConfigError, DataError
from consilium.data.batches import transforms
from consilium.data.batches.laterality import exchanged
from consilium.data.store.store import Store
from consilium.session import train
from tests.conftest import ImageFolder, coloured_image
from tests.tiny import Recorder, Run, TrainTiny, changed, same, tiny_experiment, train_tiny

# -- Augmentation -------------------------------------------------------------------------------------------------

AUGMENTATIONS = {
    "crop_scale": "[0.2, 0.5]",
    "horizontal_flip_prob": "0.5",
    "vertical_flip_prob": "0.5",
    "rotation_degrees": "30",
    "translate": "0.3",
    "scale": "[0.5, 1.5]",
    "brightness_jitter": "0.5",
    "contrast_jitter": "0.5",
    "saturation_jitter": "0.5",
    "hue_jitter": "0.3",
    "grayscale_prob": "0.5",
    "compression": "[5, 30]",
    "quarter_turn_prob": "0.9",
    "channel_shift": "0.3",
    "gamma": "[0.3, 3.0]",
    "invert_prob": "0.5",
    "blur": "3.0",
    "resolution": "[0.1, 0.5]",
    "noise": "0.5",
    "border_prob": "0.8",
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_augmentation_changes_training_reproducibly(tiny: TrainTiny, tiny_run: Run, name: str) -> None:
    override = f"data.augmentation.{name}={AUGMENTATIONS[name]}"
    run = tiny(override)
    # By far more than another order of roundings: the pictures are others.
    assert abs(run.steps("train_loss")[0] - tiny_run.steps("train_loss")[0]) > 1e-3
    assert same(run.weights, tiny(override).weights)
    assert run.manifest["image"] == tiny_run.manifest["image"]


def test_all_augmentations_together(tiny: TrainTiny, tiny_run: Run) -> None:
    together = ", ".join(f"{name}: {value}" for name, value in AUGMENTATIONS.items())
    run = tiny(f"data.augmentation={{{together}, crop_ratio: [0.5, 2.0]}}")
    assert not same(run.weights, tiny_run.weights)
    assert len(run.steps("train_loss")) == 2


def test_null_turns_an_augmentation_off(tiny: TrainTiny, tiny_run: Run) -> None:
    off = [f"data.augmentation.{name}=null" for name in AUGMENTATIONS]
    assert same(tiny(*off).weights, tiny_run.weights)


def test_the_shape_of_crops(tiny: TrainTiny) -> None:
    wide, high = (
        tiny("data.augmentation.crop_scale=[0.2, 0.5]", f"data.augmentation.crop_ratio={ratio}")
        for ratio in ("[2.0, 3.0]", "[0.33, 0.5]")
    )
    assert not same(wide.weights, high.weights)


# -- Images -------------------------------------------------------------------------------------------------------


def test_statistics_given_of_the_model_and_of_the_data(tiny: TrainTiny, tiny_images: Path) -> None:
    given = tiny("data.image.mean=[0.1, 0.2, 0.3]", "data.image.std=[0.3, 0.2, 0.1]").manifest["image"]
    assert (given["mean"], given["std"]) == ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1])
    model = tiny("data.image.statistics=model").manifest["image"]
    assert (model["mean"], model["std"]) == ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])  # of timm's test_resnet
    pixels_PC = np.concatenate(
        [np.asarray(Image.open(path)).reshape(-1, 3) for path in (tiny_images / "train").rglob("*.jpg")]
    )
    data = tiny("data.image.statistics=data").manifest["image"]
    np.testing.assert_allclose(data["mean"], pixels_PC.mean(0) / 255, atol=0.003)
    np.testing.assert_allclose(data["std"], pixels_PC.std(0) / 255, atol=0.003)
    assert data["statistics"] == "given"  # so that the bundle never computes them again


@pytest.mark.parametrize("option", ["fit=crop", "fit=pad", "interpolation=bicubic", "size=[48, 32]", "size=[32, 48]"])
def test_how_an_image_becomes_the_models(tiny: TrainTiny, tiny_run: Run, option: str) -> None:
    run = tiny(f"data.image.{option}")
    assert abs(run.steps("train_loss")[0] - tiny_run.steps("train_loss")[0]) > 1e-4
    name, _, value = option.partition("=")
    assert run.manifest["image"][name] == (json.loads(value) if "[" in value else value)


def test_a_transformer_takes_a_rectangle(tiny: TrainTiny) -> None:
    run = tiny("task.vision.name=test_vit", "data.image.size=[32, 48]")
    assert run.weights["tower.model.pos_embed"].shape[1] == 2 * 3 + 1  # patches of 16 pixels, and the class token


# -- Tables -------------------------------------------------------------------------------------------------------

Row = Mapping[str, Any]
LABELS = ("ct", "mri", "xray")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images of three labels in turn: 00.png is ct, 01.png mri, 02.png xray, 03.png ct ..."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(1)
    for number in range(60):
        coloured_image(label=number % 3, labels=3, size=(32, 32), rng=rng).save(folder / f"{number:02d}.png")
    return folder


def rows(count: int = 60, **columns: Callable[[int], Any]) -> list[dict[str, Any]]:
    """Rows of the pictures: two thirds train, the rest val and test by turns of six."""
    splits = ("train", "train", "train", "train", "val", "test")
    table = []
    for number in range(count):
        row: dict[str, Any] = {
            "image": f"{number:02d}.png",
            "label": LABELS[number % 3],
            "split": splits[number // 3 % 6],
        }
        table.append(row | {name: make(number) for name, make in columns.items()})
    return table


def write_csv(path: Path, table: Sequence[Row]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    return path


def write_jsonl(path: Path, table: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
    return path


def source(path: Path, pictures: Path, **keys: Any) -> dict[str, Any]:
    kind = path.suffix.removeprefix(".")
    return {"kind": kind, "name": path.stem, "path": str(path), "image_root": str(pictures), **keys}


def train_on(tmp_path: Path, sources: Sequence[Row], *overrides: str, **options: Any) -> Run:
    """Train on sources, with a store of the test's own."""
    given = [f"data.sources={json.dumps(list(sources))}", f"data.store.root={tmp_path / 'stores'}"]
    return train_tiny(tmp_path, tmp_path / "runs", *given, *overrides, **options)


def test_many_labels_a_case(tmp_path: Path, pictures: Path) -> None:
    path = write_csv(tmp_path / "t.csv", rows(label=lambda n: ["", "ct", "ct|mri", "ct|mri|xray"][n % 4]))
    many = source(path, pictures, columns={"label_separator": "|"})
    run = train_on(tmp_path, [many], "task.multi_label=true", "trainer.monitor=macro_auroc")
    assert run.knowledge["labels"] == ["ct", "mri", "xray"]
    assert run.knowledge["training_cases"] == 42  # those without a label too
    assert run.knowledge["class_counts"] == [sum(n % 4 >= k for n in range(60) if n // 3 % 6 < 4) for k in (1, 2, 3)]
    assert {"exact_match", "hamming_loss"} <= set(run.metrics["test"])
    balanced = train_on(tmp_path, [many], "task.multi_label=true", "data.mixture.sampling=class_balanced")
    assert not same(balanced.weights, run.weights)
    with pytest.raises(DataError, match=r"has 2 labels \(ct, mri\); set task.multi_label: true"):
        train_on(tmp_path, [many])


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_several_views_of_which_one_is_missing(tmp_path: Path, pictures: Path, kind: str) -> None:
    """A left and a right eye; every third case lacks the right one."""
    table = rows(30, left=lambda n: f"{n:02d}.png", right=lambda n: "" if n % 9 < 3 else f"{n + 30:02d}.png")
    path = tmp_path / f"eyes.{kind}"
    columns: dict[str, Any] = {"image": ["left", "right"]}
    if kind == "csv":
        write_csv(path, table)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(table), path)
    else:
        columns = {}
        views = [[row["left"], row["right"]] for row in table]
        modalities = [[{"type": "image", "value": name} for name in case if name] for case in views]
        write_jsonl(
            path,
            [
                {"text": "<|reserved_special_token_0|>" * len(m) + " eyes", "modalities": m, **row}
                for row, m in zip(table, modalities, strict=True)
            ],
        )
    run = train_on(tmp_path, [source(path, pictures, columns=columns)])
    single = (
        train_on(tmp_path / "single", [source(path, pictures, columns={"image": "left"})]) if kind != "jsonl" else None
    )
    assert len(run.steps("train_loss")) == 2
    assert single is None or not same(run.weights, single.weights)


def test_views_are_changed_apart_together_or_mirrored(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = rows(30, left=lambda n: f"{n:02d}.png", right=lambda n: "" if n % 9 < 3 else f"{n + 30:02d}.png")
    write_csv(tmp_path / "eyes.csv", table)
    sided: list[bool] = []

    def spied(sides_B2: np.ndarray, **keys: Any) -> Any:
        sided.extend((sides_B2 == [0, 1]).all(axis=1))
        return exchanged(sides_B2, **keys)

    monkeypatch.setattr(transforms, "exchanged", spied)
    keys = ["data.augmentation={crop_scale: [0.2, 0.5], horizontal_flip_prob: 0.5}"]
    eyes = source(tmp_path / "eyes.csv", pictures, columns={"image": ["left", "right"]})
    runs = {}
    for views in ("apart", "together", "mirrored"):
        runs[views] = train_on(tmp_path / views, [eyes], *keys, f"data.augmentation.views={views}")
        assert bool(sided) == (views == "mirrored")
    assert 0 < sum(sided) < len(sided), "the cases with two eyes, by the rows of the batches"
    first = {views: run.steps("train_loss")[0] for views, run in runs.items()}
    assert abs(first["apart"] - first["together"]) > 1e-3
    # This task takes the mean over views, so that their order is no matter to it.
    assert abs(first["mirrored"] - first["together"]) < 1e-4


def test_pseudo_labels_join_train_only_when_asked_for(tmp_path: Path, pictures: Path) -> None:
    path = write_csv(tmp_path / "t.csv", rows(is_gt=lambda n: "false" if n % 2 else "true"))
    trusted = train_on(tmp_path, [source(path, pictures)])
    every = train_on(tmp_path, [source(path, pictures)], "data.pseudo_labels=true")
    assert trusted.knowledge["training_cases"] == 21
    assert every.knowledge["training_cases"] == 42
    assert [len(run.metrics) for run in (trusted, every)] == [2, 2]
    for run in (trusted, every):  # a pseudo-label judges nothing
        judged = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))
        assert [judged[split]["cases"] for split in ("val", "test")] == [6, 3]


def test_bad_rows_stop_or_are_set_aside(tmp_path: Path, pictures: Path) -> None:
    table = rows()
    table[7]["image"] = "none.png"
    table[8]["split"] = "somewhere"
    bad = source(write_csv(tmp_path / "t.csv", table), pictures)
    with pytest.raises(BadRowsError, match=r"2 rows are bad:[\s\S]*t.csv:9: .*none.png[\s\S]*t.csv:10: .*'somewhere'"):
        train_on(tmp_path, [bad])
    assert not (tmp_path / "runs").exists()
    run = train_on(tmp_path, [bad], "data.on_bad_row=quarantine")
    assert run.knowledge["training_cases"] == 40
    (quarantine,) = (tmp_path / "stores").rglob("quarantine.csv")
    with quarantine.open(encoding="utf-8", newline="") as file:
        assert [row["line"] for row in csv.DictReader(file)] == ["9", "10"]
    assert any(str(quarantine) in line for line in run.reporter.lines)


def test_leaks_warn_or_stop(tmp_path: Path, pictures: Path) -> None:
    leaking = source(write_csv(tmp_path / "t.csv", rows(group_id=lambda n: f"p{n % 30}")), pictures)
    run = train_on(tmp_path, [leaking])
    assert any(line.startswith("note: leak: group 'p") for line in run.reporter.lines)
    with pytest.raises(DataError, match=r"leak\(s\) between splits \(data.on_leak is error\)"):
        train_on(tmp_path, [leaking], "data.on_leak=error")


def test_an_embedded_store_outlives_its_files(tmp_path: Path, image_folder: ImageFolder) -> None:
    images = image_folder(tmp_path / "images", size=(48, 64))
    table = [
        {"image": str(path), "label": path.parent.name, "split": path.parent.parent.name}
        for path in sorted(images.rglob("*.jpg"))
    ]
    embedded = source(write_csv(tmp_path / "t.csv", table), tmp_path)
    small = ["data.store.images=embed", "data.store.resize=32"]
    before = train_on(tmp_path, [embedded], *small)
    for path in images.rglob("*.jpg"):
        path.unlink()
    after = train_on(tmp_path, [embedded], *small)
    assert same(before.weights, after.weights)
    (folder,) = (path.parent for path in (tmp_path / "stores").rglob("store.json"))
    widths = set(Store.open(folder).table.view_column("width")[1])
    assert widths == {43}  # 64 x 48 with 32 on its shorter side


def test_embedding_changes_nothing_and_resizing_little(tiny: TrainTiny, tiny_run: Run) -> None:
    assert same(tiny("data.store.images=embed").weights, tiny_run.weights)
    assert not same(tiny("data.store.images=embed", "data.store.resize=16").weights, tiny_run.weights)


# -- Mixtures -----------------------------------------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path: Path, pictures: Path, image_folder: ImageFolder) -> list[dict[str, Any]]:
    """A source of every kind: 6, 12, 18 and 24 training cases."""
    splits = {"train": 2, "val": 1, "test": 1}
    folder = {"kind": "folder", "name": "folder", "path": str(image_folder(tmp_path / "f", splits=splits, seed=9))}
    tables = [write_csv(tmp_path / "csv.csv", rows(18)), tmp_path / "parquet.parquet", tmp_path / "jsonl.jsonl"]
    pq.write_table(pa.Table.from_pylist([row for row in rows() if row["split"] == "train"][:18]), tables[1])
    write_jsonl(tables[2], [row for row in rows() if row["split"] == "train"][18:])
    return [folder, *(source(path, pictures) for path in tables)]


def weighted(sources: Sequence[Row], weights: Sequence[float]) -> list[dict[str, Any]]:
    return [{**one, "weight": weight} for one, weight in zip(sources, weights, strict=True)]


EPOCH = [
    "task.vision.name=test_convnext",  # no batch statistics: an epoch may end with a batch of one
    "trainer.max_steps=null",
    "data.loader.batch_size=6",
    "trainer.validate_every=100",
    "data.split.val=0",  # the folder and the csv have their own
]


def test_sources_without_weights_are_one_pool(tmp_path: Path, sources: list[dict[str, Any]]) -> None:
    run = train_on(tmp_path, sources, *EPOCH)
    assert run.steps("cases")[-1] == run.knowledge["training_cases"] == 6 + 12 + 18 + 24


def test_weights_decide_the_draws_and_stop_decides_the_epoch(tmp_path: Path, sources: list[dict[str, Any]]) -> None:
    mixed = weighted(sources, [1, 1, 1, 1])
    first = train_on(tmp_path, mixed, *EPOCH)
    all_ = train_on(tmp_path, mixed, *EPOCH, "data.mixture.stop=all_exhausted")
    fixed = train_on(tmp_path, mixed, *EPOCH, "data.mixture.stop=steps", "data.mixture.steps=7")
    assert 6 <= first.steps("cases")[-1] < 60 < 24 * 3 < all_.steps("cases")[-1]
    assert fixed.steps("cases") == [6 * step for step in range(1, 8)]
    balanced = train_on(tmp_path, mixed, *EPOCH, "data.mixture.sampling=class_balanced")
    assert balanced.steps("cases")[-1] == 60
    heavy = train_on(
        tmp_path, weighted(sources, [97, 1, 1, 1]), *EPOCH, "data.mixture.stop=steps", "data.mixture.steps=20"
    )
    table = next(line for line in heavy.reporter.lines if line.startswith("mixture over 1 epochs"))
    draws = {cells[0]: int(cells[3]) for line in table.splitlines()[3:] if (cells := line.split())}
    assert sum(draws.values()) == 120
    assert draws["folder"] > 105
    assert any("warning" in line and "seen" in line for line in heavy.reporter.lines)


def test_weights_for_some_sources_only_are_refused(tmp_path: Path, sources: list[dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match="either every source has a weight or none; missing: csv, jsonl, parquet"):
        train_on(tmp_path, [{**sources[0], "weight": 1}, *sources[1:]])


def test_label_prefixes_keep_sources_apart(tmp_path: Path, sources: list[dict[str, Any]]) -> None:
    run = train_on(tmp_path, [{**sources[0], "label_prefix": "atlas"}, sources[1]])
    assert run.knowledge["labels"] == ["atlas.ct", "atlas.mri", "atlas.xray", "ct", "mri", "xray"]


def test_validation_comes_out_of_train_where_there_is_none(tmp_path: Path, image_folder: ImageFolder) -> None:
    images = image_folder(tmp_path / "images", splits={"train": 20, "test": 3})
    run = train_tiny(images, tmp_path / "runs", "data.split.val=0.3")
    judged = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))
    assert judged["test"]["cases"] == 9
    assert 9 <= judged["val"]["cases"] <= 27
    assert judged["val"]["cases"] + run.knowledge["training_cases"] == 60


def test_a_folder_without_splits_is_divided(tmp_path: Path, image_folder: ImageFolder) -> None:
    images = image_folder(tmp_path / "images", splits={"train": 30}) / "train"
    run = train_tiny(images, tmp_path / "runs", "data.split={val: 0.2, test: 0.3}")
    judged = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))
    counts = [run.knowledge["training_cases"], judged["val"]["cases"], judged["test"]["cases"]]
    assert sum(counts) == 90
    assert counts == pytest.approx([45, 18, 27], abs=12)  # by a hash of the file's name


def test_two_folder_levels_make_a_label_path(tmp_path: Path, image_folder: ImageFolder) -> None:
    images = image_folder(tmp_path / "images", labels=("radiology/ct", "radiology/mri", "microscopy/light"))
    run = train_tiny(images, tmp_path / "runs", "data.sources.0.label_levels=2")
    assert run.knowledge["labels"] == ["microscopy.light", "radiology.ct", "radiology.mri"]
    assert train_tiny(images, tmp_path / "runs").knowledge["labels"] == ["microscopy", "radiology"]


def test_folders_of_every_kind_of_image(tmp_path: Path) -> None:
    """A class for each form in which a picture may be stored; the colour tells the class anyway."""
    kinds = {
        "jpeg": (".jpg", "RGB", {}),
        "turned": (".jpg", "RGB", {"exif": Image.Exif()}),
        "cmyk": (".jpg", "CMYK", {}),
        "png": (".png", "RGB", {}),
        "palette": (".png", "P", {}),
        "alpha": (".png", "RGBA", {}),
        "grey": (".png", "L", {}),
        "deep": (".png", "I;16", {}),
        "tiff": (".tiff", "RGB", {}),
        "webp": (".webp", "RGB", {}),
        "bmp": (".bmp", "RGB", {}),
    }
    kinds["turned"][2]["exif"][0x0112] = 6
    rng = np.random.default_rng(3)
    for number, (name, (suffix, mode, options)) in enumerate(kinds.items()):
        for split, count in (("train", 2), ("val", 1), ("test", 1)):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for image in range(count):
                picture = coloured_image(label=number, labels=len(kinds), size=(24, 36), rng=rng)
                picture = picture.convert("L").convert(mode) if mode == "I;16" else picture.convert(mode)
                picture.save(folder / f"{image}{suffix}", **options)
    run = train_tiny(tmp_path / "images", tmp_path / "runs")
    assert run.knowledge["labels"] == sorted(kinds)
    assert run.knowledge["training_cases"] == 2 * len(kinds)


# -- Loading ------------------------------------------------------------------------------------------------------


def test_the_number_of_workers_changes_nothing(tiny: TrainTiny) -> None:
    augmented = ["data.augmentation.crop_scale=[0.2, 1.0]", "data.augmentation.hue_jitter=0.2"]
    alone, helped = (tiny(*augmented, f"data.loader.workers={count}") for count in (0, 2))
    assert same(alone.weights, helped.weights)
    assert alone.metrics == helped.metrics


def test_drop_last_leaves_the_short_batch_out(tiny: TrainTiny) -> None:
    epoch = ["trainer.max_steps=null", "data.loader.batch_size=10"]
    assert tiny(*epoch).steps("cases") == [10, 20, 24]
    assert tiny(*epoch, "data.loader.drop_last=true").steps("cases") == [10, 20]
    with pytest.raises(ConfigError, match="batch_size is 25, an epoch has only 24 rows and drop_last is true"):
        tiny("data.loader.batch_size=25", "data.loader.drop_last=true")


def test_the_size_of_evaluation_batches_changes_no_figure(tiny: TrainTiny, tiny_run: Run) -> None:
    run = tiny("data.loader.eval_batch_size=5", "data.loader.prefetch_factor=1")
    assert [done for name, done, _ in run.reporter.bars if name == "judge test"] == [5, 10, 12]
    assert same(run.weights, tiny_run.weights)
    for split in ("val", "test"):
        figures, expected = ({**own, "quadratic_kappa": 0.0} for own in (run.metrics[split], tiny_run.metrics[split]))
        assert figures == pytest.approx(expected, rel=1e-4)  # kappa: undefined where labels have no order


def test_the_seed_decides_the_order(tiny: TrainTiny, tiny_run: Run) -> None:
    start = f"trainer.init_from={tiny_run.folder}"
    first, other = tiny(start), tiny(start, "seed=1")
    assert changed(first.weights, other.weights)
    assert same(first.weights, tiny(start).weights)


def test_a_limit_keeps_so_many_cases_of_every_split(tiny: TrainTiny) -> None:
    run = tiny(limit=6)
    assert run.knowledge["training_cases"] == 6
    assert run.knowledge["class_counts"] == [2, 2, 2]
    judged = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))
    assert [judged[split]["cases"] for split in ("val", "test")] == [6, 6]
    assert json.loads((run.folder / "run.json").read_text(encoding="utf-8"))["limit"] == 6


def test_a_dry_run_leaves_no_run(tiny_images: Path, tmp_path: Path) -> None:
    reporter = Recorder()
    assert train(tiny_experiment(tiny_images, tmp_path / "runs"), dry_run=True, reporter=reporter) is None
    assert not (tmp_path / "runs").exists()
    text = "\n".join(reporter.lines)
    for told in ("mixture over 1 epochs", "parameters", "trial step on cpu: fp32", "2 steps take about"):
        assert told in text
