"""A council is calibrated on a site's cases: the router on the routes, each expert on the answers of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import consilium
from consilium.calibrating import restore
from consilium.core.errors import ConfigError, DataError
from tests.cli.conftest import Cli
from tests.council.conftest import CHEST, LABELS, Bundles
from tests.session.tables import Row, coloured_rows, write_table
from tests.tiny import Recorder

Build = Callable[..., Path]
EXPERTS = {"fundus": "fundus", "xray.chest": "chest"}


@pytest.fixture
def site(tmp_path: Path) -> Callable[..., Path]:
    """``site(answers=True)``: 24 new images of each route, of which those of chests have an answer."""

    def write(*, answered: int = 24, routes: list[str] = LABELS) -> Path:
        folder = tmp_path / "site"
        folder.mkdir()
        rows = coloured_rows(folder, LABELS, {"test": 24})
        chests = iter(range(24))
        found: list[Row] = []
        for row in rows:
            number = next(chests) if row["label"] == "xray.chest" else 24
            found.append({**row, "answer": CHEST[number % 2] if number < answered else ""})
        write_table(folder, [row for row in found if row["label"] in routes])
        tree = {
            "sources": [
                {"kind": "csv", "name": "site", "path": str(folder / "table.csv"), "columns": {"answer": "answer"}}
            ],
            "store": {"root": str(folder / "stores")},
        }
        (folder / "site.yaml").write_text(json.dumps({"data": tree}), encoding="utf-8")
        return folder / "site.yaml"

    return write


def knowledge(council: Path, member: str) -> dict[str, object]:
    tree = json.loads((council / "members" / member / "bundle.json").read_text(encoding="utf-8"))
    found: dict[str, object] = tree["knowledge"]
    return found


def test_router_and_experts_learn_how_sure_they_may_be_and_can_go_back(
    build: Build, bundles: Bundles, images: list[str], site: Callable[..., Path], tmp_path: Path
) -> None:
    before, data, told = build(experts=EXPERTS), site(), Recorder()
    done = consilium.calibrate(before, data=data, out=tmp_path / "there", device="cpu", reporter=told)
    after = done.bundle
    for member in ("router", "xray.chest"):
        (first, second) = knowledge(after, member)["calibrations"]  # type: ignore[misc]
        assert (first["name"], second["name"]) == ("training", "site")
        assert (after / "calibration" / member / "calibration.html").is_file()
    assert (after / "members/fundus/bundle.json").read_bytes() == (before / "members/fundus/bundle.json").read_bytes()
    assert {row["member"] for row in done.figures} == {"router", "xray.chest"}
    alone = consilium.calibrate(bundles["router"], data=data, out=tmp_path / "alone", device="cpu", quiet=True)
    of_router = [{k: v for k, v in row.items() if k != "member"} for row in done.figures if row["member"] == "router"]
    assert of_router == alone.figures, "the router is calibrated as its own bundle would be"
    answers = [consilium.load(folder, device="cpu").predict(images) for folder in (before, after)]
    assert answers[0] != answers[1]
    back = consilium.load(restore(after, name="training", out=tmp_path / "back"), device="cpu").predict(images)
    assert back == answers[0]
    with pytest.raises(ConfigError, match="have training, site, and none called 'clinic'"):
        restore(after, name="clinic", out=tmp_path / "none")
    with pytest.raises(ConfigError, match="no calibration but those of their trainings"):
        restore(before, name="training", out=tmp_path / "none")


def test_a_bundle_with_too_few_cases_stays_as_it_was(
    cli: Cli, build: Build, site: Callable[..., Path], tmp_path: Path
) -> None:
    council = build(experts=EXPERTS)
    done = cli("calibrate", council, "--data", site(answered=6), "--out", tmp_path / "there", "--name", "clinic")
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert "the expert of 'xray.chest' stays as it was: the data has 6 labelled cases of 6 groups" in said
    assert knowledge(tmp_path / "there", "xray.chest") == knowledge(council, "xray.chest")
    assert len(knowledge(tmp_path / "there", "router")["calibrations"]) == 2  # type: ignore[arg-type]
    again = cli("calibrate", tmp_path / "there", "--restore", "training", "--out", tmp_path / "back")
    assert again.code == 0
    refused = cli("calibrate", council, "--data", tmp_path / "site" / "site.yaml", "--out", tmp_path / "there")
    assert (refused.code, "exists already" in refused.err) == (2, True)


def test_cases_that_no_bundle_can_learn_from_are_refused(
    build: Build, bundles: Bundles, site: Callable[..., Path], tmp_path: Path
) -> None:
    council = build(experts=EXPERTS)
    with pytest.raises(DataError, match=r"no bundle of the council can be calibrated.*all labelled cases have one"):
        consilium.calibrate(council, data=site(answered=0, routes=["skin"]), out=tmp_path / "there", device="cpu")
    taught = bundles["sure"].parents[2] / "table.csv"
    with pytest.raises(ConfigError, match="has cases that taught the council's router"):
        consilium.calibrate(council, data=taught, out=tmp_path / "there", device="cpu")
