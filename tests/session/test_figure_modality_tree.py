"""The recipe for figures: the published tree and statistics, and a training of all of it from end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import consilium
from consilium.core.labels import ROOT
from consilium.data.cases.load import used_cases
from consilium.data.config import ImageConfig
from consilium.data.look.pixel_statistics import PixelStatistics, pixel_statistics
from consilium.data.store.prepare import prepare
from consilium.manifest import read_manifest
from consilium.tasks.answers.config import NodeStatistics
from consilium.tasks.classify.nodes import node_folder
from tests.conftest import coloured_image
from tests.labelled import label_needs
from tests.policy.source import REPOSITORY
from tests.tiny import Recorder

RECIPE = REPOSITORY / "recipes" / "figure_modality_tree.yaml"
CHILDREN = {
    "root": "exp gra mic mol oth pho rad",
    "exp": "gel pla",
    "exp.gel": "nor rpc wes",
    "gra": "3dr flow his lin oth sca sig",
    "mic": "ele flu lig",
    "mic.ele": "sca tra",
    "mol": "3ds che dna pro",
    "pho": "der org",
    "rad": "ang cmp uls xra",
}
# As published, mean / deviation: higher-modality, experimental, graphics, microscopy, molecular, radiology, electron,
# gel.
PUBLISHED = {
    "root": "0.8593 0.8540 0.8571 / 0.2788 0.2765 0.2799",
    "exp": "0.8412 0.8415 0.8425 / 0.2413 0.2410 0.2403",
    "gra": "0.9175 0.9130 0.9139 / 0.2181 0.2130 0.2226",
    "mic": "0.5411 0.4884 0.5339 / 0.3616 0.3386 0.3557",
    "mol": "0.8737 0.8744 0.8658 / 0.2385 0.2346 0.2499",
    "rad": "0.3398 0.3467 0.3479 / 0.2851 0.2880 0.2886",
    "mic.ele": "0.5783 0.5770 0.5768 / 0.2654 0.2670 0.2665",
    "exp.gel": "0.7938 0.7943 0.7951 / 0.2570 0.2567 0.2561",
}
JOINT = (
    "task.tree.head=joint",
    "task.tree.statistics={}",
    "data.image.statistics=given",
    "data.image.mean=[0.8593,0.8540,0.8571]",
    "data.image.std=[0.2788,0.2765,0.2799]",
)
NODE = ("data.filters.node=exp.gel", "task.tree={}")
TINY = (
    "task.vision={name: test_resnet, pretrained: false}",
    "data.image.size=[32,32]",
    "data.guards={near_duplicates: false, shortcuts: false}",
    "data.loader={batch_size: 16, workers: 0}",
    "schedule.warmup=0",
    "trainer.max_epochs=1",
    "trainer.max_steps=2",
    "trainer.device=cpu",
    "trainer.precision=fp32",
    "evaluation.bootstrap_samples=20",
    "report.images=false",
)


def path_of(parent: str, child: str) -> str:
    return child if parent == ROOT else f"{parent}.{child}"


def shown(statistics: NodeStatistics | ImageConfig | PixelStatistics) -> str:
    """Mean and deviation as they are printed above."""
    return " / ".join(" ".join(f"{value:.4f}" for value in part) for part in (statistics.mean, statistics.std))


NODES = [path_of(parent, child) for parent, children in CHILDREN.items() for child in children.split()]
LEAVES = [node for node in NODES if node not in CHILDREN]


def test_the_tree_is_the_published_one() -> None:
    tree = consilium.Experiment.load(RECIPE).task.tree
    labels = tree.labels()
    assert labels is not None
    found = {
        labels.name_of(group.parent): sorted(labels.names[node].rpartition(".")[2] for node in group.ids)
        for group in labels.siblings
    }
    assert found == {node: sorted(children.split()) for node, children in CHILDREN.items()}
    assert tree.head == "cascade"


def test_the_statistics_are_the_published_ones() -> None:
    given = consilium.Experiment.load(RECIPE).task.tree.statistics
    assert {node: shown(own) for node, own in given.items()} == PUBLISHED


def test_what_the_recipe_says_of_other_ways_to_train_is_so() -> None:
    """The overrides in its head are those that are trained below, and each of them loads."""
    head = RECIPE.read_text(encoding="utf-8").partition("\nname:")[0].replace("\n#  ", "")
    for overrides in (JOINT, NODE, ("data.pseudo_labels=true",)):
        assert " ".join(overrides) in head
        assert consilium.Experiment.load(RECIPE, overrides=list(overrides)).name == "figure_modality_tree"
    image = consilium.Experiment.load(RECIPE, overrides=list(JOINT)).data.image
    assert shown(image) == PUBLISHED["root"]


@pytest.fixture
def figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table as the recipe reads it: every leaf in every split, labels that stop early, pseudo-labels, UNL."""
    rng = np.random.default_rng(0)
    rows: list[tuple[str, str | None, bool]] = [
        (split, leaf, True) for leaf in LEAVES for split in ("TRAIN", "TRAIN", "VAL", "TEST")
    ]
    rows += [("TRAIN", "exp.gel", True), ("TEST", "exp.gel", True), ("VAL", "mic", True), ("TRAIN", "gra", True)]
    rows += [
        ("TRAIN", "rad.xra", False),
        ("TEST", "rad.xra", False),
        ("VAL", "exp.gel.nor", False),
        ("UNL", None, True),
    ]
    folder = tmp_path / "figures"
    folder.mkdir()
    for number, (_, label, _) in enumerate(rows):
        colour = LEAVES.index(label) if label in LEAVES else 0
        image = coloured_image(label=colour, labels=len(LEAVES), size=(24, 24), rng=rng)
        image.save(folder / f"{number}.png")
    names = [f"{number}.png" for number in range(len(rows))]
    splits, labels, is_gt = (list(column) for column in zip(*rows, strict=True))
    table = pa.table({"img_path": names, "split_set": splits, "label": labels, "is_gt": is_gt})
    pq.write_table(table, folder / "figures.parquet")
    monkeypatch.setenv("CONSILIUM_DATA", str(tmp_path))
    return tmp_path


def train(root: Path, *overrides: str) -> tuple[Path, list[str]]:
    places = [f"data.store.root={root / 'stores'}", f"output.root={root / 'runs'}"]
    recorder = Recorder()
    experiment = consilium.Experiment.load(RECIPE, overrides=[*TINY, *places, *overrides])
    result = consilium.train(experiment, reporter=recorder)
    assert result is not None
    return result.bundle, recorder.lines


def test_it_trains_as_one_network(figures: Path) -> None:
    bundle, lines = train(figures, *JOINT)
    predictor = consilium.load(bundle)
    assert set(predictor.task.labels.names) == set(NODES)
    assert any("3 cases left out: a pseudo-label" in line for line in lines)


def test_one_node_trains_alone(figures: Path) -> None:
    bundle, lines = train(figures, *NODE, "data.pseudo_labels=true")
    predictor = consilium.load(bundle)
    assert predictor.task.labels.names == ("exp.gel.nor", "exp.gel.rpc", "exp.gel.wes")
    assert "note: 2 cases left out by data.filters.node: the label stops at 'exp.gel'." in lines


@pytest.mark.slow  # nine networks
def test_it_trains_as_a_cascade_with_the_statistics_of_every_node(figures: Path) -> None:
    bundle, _ = train(figures)
    found = {}
    for node in CHILDREN:
        network = read_manifest(bundle / node_folder(node))
        assert set(network.knowledge["labels"]) == {path_of(node, child) for child in CHILDREN[node].split()}
        found[node] = shown(network.image)
    own = consilium.Experiment.load(RECIPE, overrides=[*TINY, "data.filters.node=pho", "task.tree={}"]).data
    own = own.model_copy(update={"store": own.store.model_copy(update={"root": str(figures / "stores")})})
    store = prepare(own).store
    photographs = pixel_statistics(store, cases=used_cases(store.table, config=own, needs=label_needs()).table)
    assert photographs.images == 4
    assert found == {**PUBLISHED, "pho": shown(photographs)}
    predictor = consilium.load(bundle)
    assert set(predictor.task.labels.names) == set(NODES)
    answers = predictor.predict(sorted((figures / "figures").glob("*.png"))[:3])
    assert all(set(answer["probabilities"]) == set(NODES) for answer in answers)
