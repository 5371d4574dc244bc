"""Maps of what an answer depends on: they find what a model looks at, and change nothing."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from consilium.core.config import build
from consilium.core.contracts import Batch, ParameterGroup, StepOutput
from consilium.core.evaluation import Outputs
from consilium.core.labels import LabelTree
from consilium.core.reporter import Silent
from consilium.data.cases.cases import Studied
from consilium.data.config import DataConfig, ImageConfig, LoaderConfig
from consilium.data.images.covered import PLACES
from consilium.evaluation.config import AveragingConfig, ReportConfig
from consilium.evaluation.labels.saliency import SaliencyMap
from consilium.experiment import Experiment
from consilium.judge import pictures
from consilium.predictor import Predictor, case_outputs
from consilium.tasks.answers.answering import Answering
from consilium.tasks.answers.targets import LabelKnowledge
from consilium.tasks.classify.config import ClassifyConfig
from tests.labelled import load_labelled
from tests.tiny import Recorder, Run

CELL = 8  # pixels of a place
IMAGE = ImageConfig(size=(PLACES * CELL, PLACES * CELL), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
SHOWN = ReportConfig(saliency=4)
maps = partial(pictures, section=ClassifyConfig())
KNOWN = LabelKnowledge(labels=["a", "b"], class_counts=[1, 1], training_cases=2)


class Untrained(Answering):
    """Answers, and never learns."""

    def step(self, batch: Batch) -> StepOutput:
        raise NotImplementedError

    def parameter_groups(self) -> list[ParameterGroup]:
        return []


class Spots(Untrained):
    """Gives each label the brightness of one cell of the first image, and nothing else."""

    def __init__(self, places: Sequence[tuple[int, int]], *, labels: LabelTree, multi_label: bool = False) -> None:
        super().__init__(labels, multi_label=multi_label)
        self.places = places
        self.seen: list[Tensor] = []

    def logits(self, batch: Batch) -> Tensor:
        self.seen.append(batch.views.pixels)
        cells = batch.views.pixels[:, 0].unflatten(2, (PLACES, CELL)).unflatten(4, (PLACES, CELL)).mean((1, 3, 5))
        return 6 * torch.stack([cells[:, row, column] for row, column in self.places], 1) - 2


def write_cases(
    folder: Path, bright: Sequence[Sequence[tuple[int, int]]], labels: Sequence[str]
) -> Studied[LabelKnowledge]:
    """A test case for each item of ``bright``: views of dark noise with a bright cell; labels in order."""
    random = np.random.default_rng(0)
    rows = []
    for number, (spots, label) in enumerate(zip(bright, labels, strict=True)):
        row = {"label": label, "split": "test", "left": "", "right": ""}
        for view, (y, x) in zip(("left", "right"), spots, strict=False):
            pixels = random.integers(0, 40, (PLACES * CELL, PLACES * CELL, 3), dtype=np.uint8)
            pixels[y * CELL : (y + 1) * CELL, x * CELL : (x + 1) * CELL] += 210
            row[view] = f"{number}{view}.png"
            Image.fromarray(pixels).save(folder / row[view])
        rows.append(row)
    with (folder / "t.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    columns = {"image": ["left", "right"], "label_separator": "|"}
    source = {"kind": "csv", "name": "t", "path": str(folder / "t.csv"), "columns": columns}
    config = build(DataConfig, {"sources": [source], "store": {"root": str(folder / "stores")}}, origin="tests")
    names = LabelTree(["a", "b"])
    many = any("|" in label for label in labels)
    options = {"given": names}
    return load_labelled(config, multi_label=many, options=options, splits=("test",)).studied


def predictor_of(task: Answering, *, size: tuple[int, int] = IMAGE.size) -> Predictor:
    image, loader = IMAGE.model_copy(update={"size": size}), LoaderConfig(batch_size=16, workers=0)
    return Predictor(task, KNOWN, image=image, loader=loader, device=torch.device("cpu"))


def maps_of(task: Answering, cases: Studied[LabelKnowledge]) -> list[SaliencyMap]:
    predictor = predictor_of(task)
    outputs = {"test": case_outputs(predictor, cases, "test")}
    return maps(predictor, studied=cases, outputs=outputs, report=SHOWN, reporter=Silent())


@pytest.mark.parametrize("place", [(0, 0), (0, 5), (5, 2), (3, 3)], ids=lambda p: f"{p[0]}-{p[1]}")
def test_the_map_finds_the_one_place_that_a_model_looks_at(tmp_path: Path, place: tuple[int, int]) -> None:
    cases = write_cases(tmp_path, [[place], [place]], ["a", "b"])
    found = maps_of(Spots([place, (1, 4)], labels=cases.knowledge.tree), cases)
    assert [(own.label, own.right, own.truth) for own in found] == [("a", False, "b"), ("a", True, "a")]
    for own in found:
        assert np.unravel_index(own.drops_PP.argmax(), own.drops_PP.shape) == place
        assert own.drop > 0.2
        # A patch fades out over half a cell, so only the neighbours of what is looked at can matter.
        rows, columns = np.indices(own.drops_PP.shape)
        far = (abs(rows - place[0]) > 1) | (abs(columns - place[1]) > 1)
        other = (abs(rows - 1) <= 1) & (abs(columns - 4) <= 1)  # what makes the other label likelier
        assert abs(own.drops_PP[far & ~other]).max() < 1e-6


def test_of_many_labels_each_map_is_about_the_one_it_names(tmp_path: Path) -> None:
    places = [(0, 0), (5, 5)]
    cases = write_cases(tmp_path, [[places[0]], [places[1]], [places[1]]], ["a", "b", "a|b"])
    found = maps_of(Spots(places, labels=cases.knowledge.tree, multi_label=True), cases)
    assert {own.label for own in found} == {"a", "b"}
    for own in found:
        assert np.unravel_index(own.drops_PP.argmax(), own.drops_PP.shape) == places["ab".index(own.label)]


def test_of_several_views_the_first_is_covered(tmp_path: Path) -> None:
    cases = write_cases(tmp_path, [[(0, 0), (2, 2)]], ["a"])
    task = Spots([(0, 0), (5, 0)], labels=cases.knowledge.tree)
    predictor = predictor_of(task)
    outputs = {"test": case_outputs(predictor, cases, "test")}
    task.seen.clear()
    found = maps(predictor, studied=cases, outputs=outputs, report=ReportConfig(saliency=1), reporter=Silent())
    with Image.open(cases.cases.table.images(0)[0]) as first:
        assert (found[0].image_HWC == np.asarray(first)).all()
    with Image.open(cases.cases.table.images(0)[1]) as second:
        expected = torch.from_numpy(np.array(second)).permute(2, 0, 1) / 255
    views_NVCHW = torch.cat(task.seen)
    assert len(views_NVCHW) == 1 + PLACES**2
    torch.testing.assert_close(views_NVCHW[:, 1], expected.expand(len(views_NVCHW), -1, -1, -1))
    assert len(views_NVCHW[:, 0].unique(dim=0)) == 1 + PLACES**2


def covered_by_hand(image: Image.Image, row: int, column: int) -> bytes:
    """An image of 32 x 32 pixels with one place covered, pixel by pixel."""
    side, cell = 32, 32 / 6
    blurred = image.filter(ImageFilter.GaussianBlur(2 * cell))
    pixels = np.array(image)
    for y in range(side):
        for x in range(side):
            # Half a cell beyond the edges of the place nothing is covered any more.
            outside_y = max(row * cell - (y + 0.5), (y + 0.5) - (row + 1) * cell, 0.0)
            outside_x = max(column * cell - (x + 0.5), (x + 0.5) - (column + 1) * cell, 0.0)
            share = max(0.0, 1 - outside_y / (cell / 2)) * max(0.0, 1 - outside_x / (cell / 2))
            for channel in range(3):
                old, cover = int(pixels[y, x, channel]), blurred.getpixel((x, y))[channel]  # type: ignore[index]
                pixels[y, x, channel] = round((1 - share) * old + share * cover)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


class AllPixels(Untrained):
    """Scores that every pixel has a share in."""

    def logits(self, batch: Batch) -> Tensor:
        pixels_BD = batch.views.pixels[:, 0].flatten(1)
        weights_DK = torch.randn(pixels_BD.shape[1], len(self.labels), generator=torch.Generator().manual_seed(0))
        return pixels_BD @ weights_DK / 10


@pytest.mark.parametrize("place", [(0, 0), (0, 5), (3, 1)], ids=lambda p: f"{p[0]}-{p[1]}")
def test_a_fall_is_that_of_an_image_covered_by_hand(tmp_path: Path, place: tuple[int, int]) -> None:
    cases = write_cases(tmp_path, [[(0, 5)], [(3, 2)]], ["a", "b"])
    task = AllPixels(cases.knowledge.tree, multi_label=False)
    predictor = predictor_of(task, size=(32, 32))  # a place has no whole number of pixels
    outputs = {"test": case_outputs(predictor, cases, "test")}
    found = maps(predictor, studied=cases, outputs=outputs, report=SHOWN, reporter=Silent())
    assert found
    for own in found:
        file = cases.cases.table.images(cases.cases.table.ids.index(own.id))[0]
        by_hand = covered_by_hand(Image.fromarray(own.image_HWC), *place)
        whole, covered = (record["probabilities"][own.label] for record in predictor.predict([file, by_hand]))
        assert own.probability == pytest.approx(whole, abs=1e-5)
        assert own.drops_PP[place] == pytest.approx(whole - covered, abs=1e-3)  # a half level may round either way
    assert max(abs(own.drops_PP[place]) for own in found) > 0.02


# -- A trained network ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged(tiny_run: Run) -> tuple[Predictor, Studied[LabelKnowledge], dict[str, Outputs]]:
    experiment = Experiment.load(tiny_run.folder / "config.yaml")
    cases = load_labelled(experiment.data, splits=("test",)).studied
    predictor = Predictor.load(tiny_run.folder, device="cpu")
    return predictor, cases, {split: case_outputs(predictor, cases, split) for split in ("val", "test")}


class Unasked:
    """Features that nobody may ask for."""

    def read(self, row: int, draw: int) -> list[bytes]:
        raise AssertionError("the images are to be read")


def test_images_are_read_and_seen_once_and_nothing_changes(
    judged: tuple[Predictor, Studied[LabelKnowledge], dict[str, Outputs]],
) -> None:
    predictor, cases, outputs = judged
    expected = maps(predictor, studied=cases, outputs=outputs, report=SHOWN, reporter=Silent())
    frozen = Predictor(
        predictor.task,
        predictor.knowledge,
        image=predictor.image,
        loader=predictor.loader,
        device=predictor.device,
        looks=AveragingConfig(mirror=True),
        cached=Unasked(),  # type: ignore[arg-type]
    )
    before = {name: tensor.clone() for name, tensor in predictor.task.state_dict().items()}
    random, reporter = torch.get_rng_state(), Recorder()
    predictor.task.train()
    found = maps(frozen, studied=cases, outputs=outputs, report=SHOWN, reporter=reporter)
    assert predictor.task.training
    predictor.task.eval()
    assert all(torch.equal(tensor, before[name]) for name, tensor in predictor.task.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert reporter.bars[-1] == ("saliency", len(found) * 37, len(found) * 37)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.drops_PP, other.drops_PP)
    assert {own.id for own in found} <= set(outputs["test"].ids)  # not of val


# -- What is left out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("report", [ReportConfig(images=False), ReportConfig(saliency=0)], ids=["images", "saliency"])
def test_maps_that_nobody_wants_cost_nothing(tmp_path: Path, report: ReportConfig) -> None:
    cases = write_cases(tmp_path, [[(0, 0)], [(0, 0)]], ["a", "b"])
    task = Spots([(0, 0), (1, 4)], labels=cases.knowledge.tree)
    predictor = predictor_of(task)
    outputs = {"test": case_outputs(predictor, cases, "test")}
    task.seen.clear()
    assert maps(predictor, studied=cases, outputs=outputs, report=report, reporter=Silent()) == []
    assert not task.seen


def test_an_image_that_cannot_be_read_is_told_and_left_out(tmp_path: Path) -> None:
    cases = write_cases(tmp_path, [[(0, 0)], [(0, 0)]], ["a", "b"])
    predictor = predictor_of(Spots([(0, 0), (1, 4)], labels=cases.knowledge.tree))
    outputs = {"test": case_outputs(predictor, cases, "test")}
    gone = Path(str(cases.cases.table.images(1)[0]))
    gone.unlink()
    reporter = Recorder()
    found = maps(predictor, studied=cases, outputs=outputs, report=SHOWN, reporter=reporter)
    assert [own.id for own in found] == [cases.cases.table.ids[0]]
    assert reporter.lines == [
        f"note: the report has no map of case {cases.cases.table.ids[1]}: {gone} does not exist; correct the path, or "
        "leave the row out."
    ]
    Path(str(cases.cases.table.images(0)[0])).unlink()
    assert maps(predictor, studied=cases, outputs=outputs, report=SHOWN, reporter=reporter) == []
