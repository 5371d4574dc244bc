"""``consilium demo``: a council on the embedded data, from the first training to its report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from consilium.core.answers import UNKNOWN
from consilium.core.config import to_yaml
from consilium.core.evaluation import Evaluation
from consilium.core.files import write_text
from consilium.core.reporter import Reporter, format_table
from consilium.council import Council, build_council
from consilium.data.batches.rows import Query
from consilium.demo.setting import demo_captions, demo_experiment, demo_images
from consilium.demo.unseen import judge_unseen
from consilium.evaluating import evaluate
from consilium.evaluation.council.figures import judged
from consilium.evaluation.report.page import REPORT
from consilium.evaluation.report.wording import with_interval
from consilium.predictor import Predictor
from consilium.search import Index
from consilium.session import train

SKIN, EYE = "photograph.dermoscopy", "eye.fundus"  # the nodes of the router's tree where the experts sit


def run_demo(out: Path, *, reporter: Reporter) -> Evaluation:
    """Train a router and two experts, make a council of them, ask it about held-out images, and judge it."""
    router = _train("router", out, reporter=reporter)
    tower = {"task.vision.name": str(router)}  # what the router has learned to see, the experts build on
    skin = _train("skin", out, tower, reporter=reporter)
    eye = _train("eye", out, tower, reporter=reporter)
    folder = out / "demo_council" / router.name
    council = build_council(
        router=router,
        experts={SKIN: skin, EYE: eye},
        indexes={EYE: _index(eye, folder / "index", reporter=reporter)},
        out=folder / "demo_council",
        reporter=reporter,
    )
    _show_answers(council, reporter=reporter)
    evaluation = _judge(council, folder, out, reporter=reporter)
    judge_unseen(out, report=folder / "report", reporter=reporter)
    reporter.line(f"report: {(folder / 'report' / REPORT).resolve()}")
    return evaluation


def _train(name: str, out: Path, changes: Mapping[str, Any] | None = None, *, reporter: Reporter) -> Path:
    """The bundle that one of the demo's configs gives."""
    result = train(demo_experiment(name, out, changes), reporter=reporter)
    assert result is not None
    return result.bundle


def _index(eye: Path, folder: Path, *, reporter: Reporter) -> Path:
    """What the expert of the eye has learned from, for answers that show the nearest of these images."""
    known = [path for path, row in demo_captions("idrid_grades").items() if row["split"] == "train"]
    return Index.build(Predictor.load(eye), known, out=folder, reporter=reporter).folder


def _show_answers(council: Path, *, reporter: Reporter) -> None:
    """Ask the council about a held-out image of each modality; with a lesion comes the note of its patient."""
    lesions, eyes = demo_captions("isic2017"), demo_captions("idrid_grades")
    held_out = {image.label: image for image in demo_images() if image.split == "test"}
    images = [held_out[label] for label in sorted(held_out)]
    notes = [lesions[image.path]["context"] if image.path in lesions else None for image in images]
    questions = [Query(image.path, note) for image, note in zip(images, notes, strict=True)]
    records = Council.load(council).predict(questions)
    findings = {path: row.get("label_name", row["label"]) for path, row in {**lesions, **eyes}.items()}
    rows = [
        {
            "image": image.path.name,
            "modality": image.label,
            "route": record["route"]["label"],
            "answer": _answer(record, findings),
            "truth": findings.get(image.path),
        }
        for image, record in zip(images, records, strict=True)
    ]
    reporter.line(format_table(rows, title="a held-out image of each modality"))


def _answer(record: Mapping[str, Any], findings: Mapping[Path, str]) -> str:
    """What the expert says: a diagnosis, or of the eye the finding of the nearest image that it has learned from."""
    answer = record["answer"]
    if answer is None:
        return UNKNOWN
    return findings[Path(answer["nearest"][0]["images"][0])] if "nearest" in answer else str(answer["label"])


def _judge(council: Path, folder: Path, out: Path, *, reporter: Reporter) -> Evaluation:
    """Judge the council end to end on all held-out images, and say what its router costs."""
    data = folder / "data.yaml"
    write_text(data, to_yaml(demo_experiment("council", out)))
    evaluation = evaluate(council, data=data, out=folder / "report", reporter=reporter)
    found, oracle, cost = (
        with_interval(name, evaluation.intervals[name], confidence=0.95)
        for name in ("end_to_end", "oracle_end_to_end", "router_cost")
    )
    reporter.line(
        f"end to end: of {judged(evaluation)} held-out images {found} got the right answer of the right expert, "
        "or rightly none;\n"
        f"told the true route of each it would be {oracle}: the router costs {cost}"
    )
    return evaluation
