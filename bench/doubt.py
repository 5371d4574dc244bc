"""Which sign of doubt finds the wrong answers on sources, and the images of classes, that a router has never seen?

    python bench/doubt.py [--share 0.99]

Data is ``modality/manifest.csv`` in the folder that CONSILIUM_SHARED names. The tower is EfficientNet-Lite0 with
ImageNet weights (``bench/_imagenet.py``), frozen, at 224 pixels; the head is scikit-learn's logistic regression on
standardised features, classes balanced. Both signs stop the answers beyond what ``--share`` of validation cases have:
the probability of the answer, and its distance (``consilium.models.distance``, as ``task.answers.distance`` does).

- *Sources*: each source is left out whole, and judged on its classes that other sources have, too; training and
  validation are the collection's own splits without it. AURC and AUROC order all these answers, wrong against right.
- *Classes*: each class is left out of training and validation; its images are to be told from the other test cases.

No interval is given: the sources are few and differ more from each other than chance does.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import timm
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bench._imagenet import MODEL, imagenet_weights
from bench._machine import describe_machine
from consilium.core.labels import LabelTree
from consilium.core.reporter import format_table
from consilium.data.batches.loader import Loader, evaluation_requests
from consilium.data.batches.readers import ImageReader, Readers
from consilium.data.batches.rows import Items
from consilium.data.batches.transforms import DeviceTransform
from consilium.data.config import ImageConfig, LoaderConfig
from consilium.evaluation.labels.hierarchy import aurc
from consilium.models.distance import Moments
from consilium.models.weights import load_state

SIGNS = ("probability", "distance")


@dataclass(frozen=True)
class Images:
    """Features [N, F] of all images, with the class, source and split of each."""

    features_NF: np.ndarray
    classes_N: np.ndarray
    sources_N: np.ndarray
    splits_N: np.ndarray
    names: list[str]


@dataclass(frozen=True)
class Doubted:
    """Answers to some images: whether each is wrong, how sure it is by each sign, and which signs stop it."""

    wrong_N: np.ndarray
    sure_SN: np.ndarray
    stopped_SN: np.ndarray


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.99)
    share = parser.parse_args().share
    if "CONSILIUM_SHARED" not in os.environ:
        print("CONSILIUM_SHARED names no folder with modality/manifest.csv, so there is nothing to measure on.")
        return
    print(describe_machine())
    images = read(Path(os.environ["CONSILIUM_SHARED"]))
    by_source = dict(left_out_sources(images, share=share))
    rows = [{"source": name, "images": len(own.wrong_N), **stopped(own)} for name, own in by_source.items()]
    everything = join(list(by_source.values()))
    rows.append({"source": "all", "images": len(everything.wrong_N), **stopped(everything)})
    known = doubts(images, images.splits_N == "train", images.splits_N == "val", images.splits_N == "test", share=share)
    rows.append({"source": "known ones, test", "images": len(known.wrong_N), **stopped(known)})
    print(format_table(rows, title="Sources left out: share of wrong and right answers that each sign stops"))
    print(format_table([ordered(name, own) for name, own in (("all", everything), ("known ones, test", known))]))
    print(format_table(list(left_out_classes(images, share=share)), title="Classes left out"))
    print(describe_machine())


def read(folder: Path) -> Images:
    """The features of the collection, computed."""
    with (folder / "modality" / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with TemporaryDirectory() as temporary:
        state = load_state(imagenet_weights(Path(temporary)))
    tower: Any = timm.create_model(MODEL, num_classes=0).eval()
    tower.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith("classifier.")})
    image = ImageConfig(size=(224, 224), mean=tower.pretrained_cfg["mean"], std=tower.pretrained_cfg["std"])
    reader = ImageReader(Items([str(folder / row["path"]) for row in rows]), image=image)
    config = LoaderConfig(batch_size=32, workers=0)
    loader = Loader(Readers(images=reader), config=config)
    transform, found = DeviceTransform(image, augmentation=None, seed=0), []
    for loaded in loader.load(evaluation_requests(range(len(rows)), config=config)):
        batch = transform(loaded.whole(str), train=False)
        with torch.no_grad():
            found.append(tower(batch.views.pixels[:, 0]).numpy())
    names = sorted({row["modality"] for row in rows})
    columns = {key: np.array([row[key] for row in rows]) for key in ("source", "split")}
    classes_N = np.array([names.index(row["modality"]) for row in rows])
    return Images(np.concatenate(found), classes_N, columns["source"], columns["split"], names)


def left_out_sources(images: Images, *, share: float) -> Iterator[tuple[str, Doubted]]:
    """The answers to each source by a head that has not seen it, of the classes that others have, too."""
    others = [len(set(images.sources_N[images.classes_N == number])) for number in range(len(images.names))]
    for source in sorted(set(images.sources_N)):
        other_N = images.sources_N != source
        asked_N = ~other_N & (np.array(others)[images.classes_N] > 1)
        if asked_N.any():
            train_N, val_N = ((images.splits_N == split) & other_N for split in ("train", "val"))
            yield source, doubts(images, train_N, val_N, asked_N, share=share)


def left_out_classes(images: Images, *, share: float) -> Iterator[dict[str, object]]:
    """How well each sign tells a class that training lacks from the others, and how much of it is stopped."""
    rows = []
    for number, name in enumerate(images.names):
        new_N = images.classes_N == number
        train_N, val_N = ((images.splits_N == split) & ~new_N for split in ("train", "val"))
        asked_N = new_N | (images.splits_N == "test")
        own = doubts(images, train_N, val_N, asked_N, share=share)
        is_new = new_N[asked_N]
        areas = {f"AUROC {sign}": roc_auc_score(is_new, -sure) for sign, sure in zip(SIGNS, own.sure_SN, strict=True)}
        rows.append({"class": name, **areas, **shares("stopped", own.stopped_SN[:, is_new])})
        yield rows[-1]
    yield {"class": "mean", **{key: np.mean([row[key] for row in rows]) for key in rows[0] if key != "class"}}


def doubts(images: Images, train_N: np.ndarray, val_N: np.ndarray, asked_N: np.ndarray, *, share: float) -> Doubted:
    """Answers to some images by a head on others, and the thresholds of validation."""
    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=150, class_weight="balanced"))
    head.fit(images.features_NF[train_N], images.classes_N[train_N])
    moments = Moments(nodes=len(images.names), features=images.features_NF.shape[1])
    moments.add(images.features_NF[train_N], images.classes_N[train_N])
    distance = moments.fitted(LabelTree(images.names))

    def answers(chosen_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shares_NK = head.predict_proba(images.features_NF[chosen_N])
        said_N = head.classes_[shares_NK.argmax(1)]
        distances_NK = distance(torch.from_numpy(images.features_NF[chosen_N])).numpy()
        return said_N, np.stack([shares_NK.max(1), -distances_NK[np.arange(len(said_N)), said_N]])

    _, val_SN = answers(val_N)
    said_N, sure_SN = answers(asked_N)
    least_S = np.quantile(val_SN, 1 - share, axis=1)
    return Doubted(said_N != images.classes_N[asked_N], sure_SN, sure_SN < least_S[:, None])


def join(several: list[Doubted]) -> Doubted:
    """All answers in one list."""
    return Doubted(
        np.concatenate([own.wrong_N for own in several]),
        np.concatenate([own.sure_SN for own in several], axis=1),
        np.concatenate([own.stopped_SN for own in several], axis=1),
    )


def stopped(own: Doubted) -> dict[str, object]:
    """The share of wrong and of right answers that each sign stops, and either."""
    wrong_N = own.wrong_N
    return {
        "wrong": float(wrong_N.mean()),
        **shares("of wrong", own.stopped_SN[:, wrong_N]),
        **shares("of right", own.stopped_SN[:, ~wrong_N]),
    }


def shares(what: str, stopped_SN: np.ndarray) -> dict[str, object]:
    """The share that each sign stops, and that either does; None of nothing."""
    each = {**dict(zip(SIGNS, stopped_SN, strict=True)), "either": stopped_SN.any(0)}
    return {f"{what}: {sign}": float(own.mean()) if own.size else None for sign, own in each.items()}


def ordered(name: str, own: Doubted) -> dict[str, object]:
    """How each sign orders the answers."""
    row: dict[str, object] = {"source": name}
    for sign, sure_N in zip(SIGNS, own.sure_SN, strict=True):
        row[f"AURC {sign}"] = float(aurc(sure_N, own.wrong_N))
        row[f"AUROC {sign}"] = float(roc_auc_score(~own.wrong_N, sure_N))
    return row


if __name__ == "__main__":
    main()
