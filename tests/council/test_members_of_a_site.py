"""Ensembles and calibrated bundles sit in a council like any other."""

from __future__ import annotations

from pathlib import Path

import consilium
from consilium.calibrating import calibrate
from consilium.council import build_council
from consilium.ensembling import ensemble
from consilium.predictor import Predictor
from tests.council.conftest import CHEST, LABELS, Bundles, classifier
from tests.council.test_answering import near, without
from tests.session.tables import coloured_rows


def test_ensembles_route_and_answer_as_they_do_alone(bundles: Bundles, images: list[str], tmp_path: Path) -> None:
    """A calibrated one abstains where its new thresholds say so."""
    second = classifier(tmp_path / "router", LABELS, "task.tree.head=joint", "seed=1")
    both = ensemble([bundles["sure"], second], out=tmp_path / "routers", quiet=True)
    chests = [bundles["chest"], classifier(tmp_path / "chest", CHEST, "seed=1")]
    expert = ensemble(chests, out=tmp_path / "chests", quiet=True)
    rows = coloured_rows(tmp_path, LABELS, {"site": 10})
    table = tmp_path / "site.csv"
    lines = ["image,label", *(f"{row['image']},{row['label']}" for row in rows)]
    table.write_text("\n".join(lines), encoding="utf-8")
    site = calibrate(both, data=table, out=tmp_path / "new", wanted_accuracy=0.9, device="cpu", quiet=True)
    council = build_council(
        router=site.bundle,
        experts={"xray.chest": expert},
        default=bundles["general"],
        out=tmp_path / "council",
        quiet=True,
    )
    alone = {
        "xray.chest": Predictor.load(expert, device="cpu"),
        "default": Predictor.load(bundles["general"], device="cpu"),
    }
    routes = Predictor.load(site.bundle, device="cpu").predict(images)
    found = consilium.load(council, device="cpu").predict(images)
    for image, record, route in zip(images, found, routes, strict=True):
        near(record["route"], without(route))
        assert record["route"]["disagreement"] >= 0
        near(record["answer"], without(alone[record["expert"]].predict([image])[0]))
    assert {record["expert"] for record in found} == {"xray.chest", "default"}
