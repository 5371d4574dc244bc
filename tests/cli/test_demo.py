"""``demo``: the whole way from the embedded images to a council and its report."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import consilium.demo.run
import consilium.demo.unseen
from consilium.core.config import read_tree
from consilium.demo.run import run_demo
from consilium.demo.unseen import UNSEEN
from consilium.experiment import Experiment
from consilium.manifest import CouncilManifest, read_header
from consilium.session import train
from tests.cli.conftest import Cli
from tests.policy.source import REPOSITORY
from tests.tiny import Recorder

SOURCES = {source for cell in UNSEEN for source in cell["meta.source"]}


def test_the_demo_ends_with_a_council_and_its_report(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole command on a part of its training data."""

    def short(experiment: Experiment, **options: Any) -> Any:
        trainer = experiment.trainer.model_copy(update={"max_epochs": 1})
        report = experiment.report.model_copy(update={"images": False})
        return train(experiment.model_copy(update={"trainer": trainer, "report": report}), limit=26, **options)

    for module in (consilium.demo.run, consilium.demo.unseen):
        monkeypatch.setattr(module, "train", short)
    answer = cli("demo", "--out", tmp_path / "runs")
    assert answer.code == 0, answer.err
    (report,) = (tmp_path / "runs" / "demo_council").rglob("report.html")
    assert answer.out.splitlines()[-1] == f"report: {report}"
    council = read_header(report.parents[1] / "demo_council")
    assert isinstance(council, CouncilManifest)
    assert set(council.council.experts) == {"photograph.dermoscopy", "eye.fundus"}
    answers, rest = answer.out.split("a held-out image of each modality\n")[1].split("test: 275 cases")
    assert answers.count(".jpg") == 13
    assert "the router costs" in rest
    unseen = rest.split("sources that the router has never seen")[1]
    page = report.read_text(encoding="utf-8").split("Sources that the router has never seen")[1].split("</section>")[0]
    for source in SOURCES:
        assert source in unseen
        assert source in page
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


def test_the_demo_says_where_it_cannot_write(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for out in (tmp_path / "file", "gs://bucket/runs"):
        answer = cli("demo", "--out", out)
        assert answer.code == 2
        assert str(out) in answer.err
        assert "Traceback" not in answer.out + answer.err


def test_the_council_is_judged_by_the_routes_of_the_router() -> None:
    """What ``council.yaml`` adds to ``router.yaml`` leaves no modality out but the one that the second source has."""
    folder = REPOSITORY / "src" / "consilium" / "demo"
    router, judged = read_tree(folder / "router.yaml"), read_tree(folder / "council.yaml")
    routes = {*router["data"]["rename_labels"].values(), "chart"}
    (route,) = [source["route"] for source in judged["data"]["sources"] if "route" in source]
    branches = judged["data"]["filters"]["labels"]
    kept = {leaf for leaf in routes if any(f"{leaf}.".startswith(f"{branch}.") for branch in branches)}
    assert routes - kept == {route}


@pytest.mark.slow
def test_the_readme_shows_what_the_demo_prints(tmp_path: Path) -> None:
    """Line by line, without figures and paths; the council does better than its experts without a router could."""
    reporter = Recorder()
    evaluation = run_demo(tmp_path, reporter=reporter)
    printed = [_shape(line) for text in reporter.lines for line in text.splitlines()]
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    shown = readme.split("```text\n")[1].split("```")[0].splitlines()
    place = 0
    for line in filter(lambda line: line != "...", shown):
        wanted = _shape(line.removesuffix(" ..."))
        same = [n for n, text in enumerate(printed) if n >= place and text.startswith(wanted)]
        assert same, f"the demo does not print, or not there: {line}"
        place = same[0] + 1
    found = {name: interval.value for name, interval in evaluation.intervals.items()}
    assert found["route_accuracy"] > 0.9
    assert 0.85 < found["end_to_end"] <= found["oracle_end_to_end"]
    (skin,) = [row for row in evaluation.tables["per_expert"] if row["expert"] == "photograph.dermoscopy"]
    assert (skin["n"], skin["judged"]) == (36, 36)
    assert skin["oracle_end_to_end"] > 0.4  # chance is a third


def _shape(line: str) -> str:
    """A line without what differs from run to run: figures, paths, and the cells of a table but the first."""
    if line.startswith("  "):
        return re.sub(r"[\d.]+", "#", re.split(r" {2,}", line.strip())[0])
    line = re.sub(r"\S*(runs|stores|demo_\w+)/\S*", "PATH", line).replace(" (best so far)", "")
    return re.sub(r"\d[\d.]*", "#", line)
