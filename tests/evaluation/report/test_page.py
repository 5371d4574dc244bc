"""The report: self-contained, escaped, private when asked, and complete."""

from __future__ import annotations

import csv
import io
import json
import re
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from PIL import Image

from consilium.core.answers import Calibration
from consilium.core.evaluation import Evaluation, Outputs
from consilium.core.labels import LabelTree
from consilium.core.licenses import License
from consilium.evaluation.config import AnswersConfig, EvaluationConfig, ReportConfig
from consilium.evaluation.labels.classification import ClassificationEvaluator
from consilium.evaluation.labels.report import label_parts
from consilium.evaluation.labels.tree import TreeEvaluator
from consilium.evaluation.report.page import (
    ReportContent,
    add_table,
    escape_markdown,
    pivot,
    read_warnings,
    shortened,
    smooth,
    soft_breaks,
    to_csv,
    write_report,
)
from consilium.evaluation.statistics import mean_and_deviation
from tests.evaluation.trees import outputs

NASTY = '<script>alert("x")</script>'
LABELS = ["ct", NASTY, "x_ray|chest"]


def evaluation(*, multi_label: bool = False, split: str = "test") -> Evaluation:
    random = np.random.default_rng(3)
    truth = random.integers(2, size=40)  # the third class never occurs
    probabilities = random.dirichlet(np.ones(3), size=40)
    targets = np.eye(3, dtype=np.float32)[truth] if multi_label else truth
    outputs = Outputs(
        arrays={"probabilities": probabilities.astype(np.float32)},
        targets=targets,
        ids=[f'{NASTY}" onerror="x{n}' for n in range(40)],
        groups=[str(n // 2) for n in range(40)],
        columns={"source": [NASTY, ""] * 20},
    )
    config = EvaluationConfig(bootstrap_samples=50, columns=["source", "age"])
    return ClassificationEvaluator(
        LabelTree(LABELS), multi_label=multi_label, config=config, answers=AnswersConfig()
    ).evaluate(outputs, split=split)


def picture(*, exif: bool = False) -> bytes:
    image = Image.new("RGB", (300, 200), "teal")
    tags = Image.Exif()
    tags[0x010E] = "Patient Jane Doe"
    out = io.BytesIO()
    image.save(out, "JPEG", **({"exif": tags, "comment": b"Jane Doe"} if exif else {}))
    return out.getvalue()


def content(**changes: object) -> ReportContent:
    given: dict[str, object] = {
        "title": f"Router {NASTY}",
        "name": "router",
        "parts": label_parts(LABELS),
        "evaluations": {"val": evaluation(split="val"), "test": evaluation()},
        "facts": {"Seed": "0", "Device": NASTY},
        "history": [  # as csv gives it
            {"step": "1", "train_loss": "2.0", "learning_rate_head": "0.1", "val_macro_f1": ""},
            {"step": "2", "train_loss": "1.0", "learning_rate_head": "0.05", "val_macro_f1": "0.5"},
        ],
        "best_step": 2,
        "runs": {"accuracy": mean_and_deviation([0.5, 0.7])},
        "data": [
            {"source": "a", "split": "train", "label": NASTY, "cases": 7},
            {"source": "b", "split": "test", "label": "ct", "cases": 2000},
        ],
        "mixture": [{"source": "a", "weight": 0.5, "coverage": None}],
        "licenses": [License(source=NASTY, name=NASTY, read_from="README.md")],  # cards are other people's
        "warnings": [f"beware of {NASTY}"],
        "config_yaml": f"name: {NASTY}\n",
        "command": "consilium train router.yaml",
        "thumbnail": lambda _: picture(),
    }
    return ReportContent(**{**given, **changes})  # type: ignore[arg-type]


class Page(HTMLParser):
    """Tags with their attributes, and whether every tag closes."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "wbr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page(folder: Path, given: ReportContent) -> tuple[str, Page]:
    text = write_report(folder, given).read_text(encoding="utf-8")
    return text, Page(text)


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    text, parsed = page(tmp_path, content())
    for _, attributes in parsed.tags:
        for name in ("src", "href", "srcset", "action", "data", "xlink:href", "background"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "url(" not in text
    assert "@import" not in text
    assert not re.search(r"https?://|//[a-z]", text)
    policy = parsed.all("meta")[2]["content"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def box(text: str) -> str:
    """What the box for readers says."""
    return text.split('<aside class="cautions">')[1].split("</aside>")[0]


def test_command_lines_stand_below_the_box_for_readers(tmp_path: Path) -> None:
    found = "leak: two sides of a split."
    look = "`consilium data inspect` lists all that was found."
    text, _ = page(tmp_path, content(warnings=[found, look, f"{found} Look: `consilium data inspect`."]))
    assert box(text).count(found) == 2
    assert "consilium data" not in box(text)
    below = text.split('<section id="reproduce">')[1]
    assert look in below
    assert "Look: `consilium data inspect`." in below


def test_what_the_largest_class_alone_reaches_stands_beside_accuracy(tmp_path: Path) -> None:
    text, _ = page(tmp_path, content())
    support = {row["label"]: row["support"] for row in evaluation().tables["per_class"]}
    share = max(support.values()) / sum(support.values())
    (card,) = (part for part in text.split('<div class="card">') if "<dt>Accuracy</dt>" in part)
    assert f"always naming the largest class reaches {100 * share:.1f}" in card
    assert "A model that always names the largest class, " in text.split("</header>")[0]
    figures = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert figures["test"]["largest_class"]["accuracy"] == pytest.approx(share)
    assert support[figures["test"]["largest_class"]["label"]] == max(support.values())
    text, _ = page(tmp_path, content(evaluations={"test": evaluation(multi_label=True)}))
    assert "largest class" not in text


@pytest.mark.parametrize("id", ["short", "s:train/patient-0017/series-2/0000123.png", "x" * 21, "Größe" * 9])
def test_long_ids_lose_their_middle(id: str) -> None:
    shown = shortened(id, 20)
    assert len(shown) <= 20
    assert (shown == id) == (len(id) <= 20)
    assert (shown[:9], shown[-5:]) == (id[:9], id[-5:])


def test_ids_under_thumbnails_are_short_and_whole_where_one_points_at_them(tmp_path: Path) -> None:
    _, parsed = page(tmp_path, content())
    whole = [attributes["title"] for tag, attributes in parsed.tags if attributes.get("class") == "id"]
    assert whole
    for id in whole:
        assert id is not None
        assert shortened(id, 20) in parsed.text


def test_warnings_are_kept_for_whoever_sums_up_several_reports(tmp_path: Path) -> None:
    warnings = ["leak: 'a', \"b\"; c", NASTY, "two\nlines"]
    page(tmp_path, content(warnings=warnings))
    assert read_warnings(tmp_path) == warnings
    page(tmp_path, content(warnings=[]))
    assert read_warnings(tmp_path) == []
    assert read_warnings(tmp_path / "of an earlier version") == []


def test_a_table_can_be_added_later(tmp_path: Path) -> None:
    write_report(tmp_path, content())
    for title in (NASTY, "Second"):
        rows = [{"a source": NASTY, "label": "ct", "named right": 0.5}]
        add_table(tmp_path, title=title, text="They came later.", rows=rows)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    parsed = Page(text)
    assert NASTY not in text
    assert parsed.text.index(NASTY) < parsed.text.index("Second") < parsed.text.index("How training went")
    assert parsed.text.count("They came later.") == 2
    assert '<td>ct</td><td class="n">0.500</td>' in text  # words begin on the left, figures end on the right


def test_what_users_wrote_is_escaped(tmp_path: Path) -> None:
    text, parsed = page(tmp_path, content())
    assert NASTY not in text
    assert not parsed.all("script")
    assert all(not name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert NASTY in parsed.text  # shown as it is
    card = (tmp_path / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "<script>" not in card.replace("\\<script\\>", "")
    assert escape_markdown("a|b\n*c*") == r"a\|b \*c\*"


def test_plots_are_well_formed(tmp_path: Path) -> None:
    text, _ = page(tmp_path, content())
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    for drawing in drawings:
        ElementTree.fromstring(drawing)
        assert "nan" not in drawing.lower()
    found = {ElementTree.fromstring(drawing).get("class") for drawing in drawings}
    assert found == {"strip", "confusion", "reliability", "chart"}


def test_pictures(tmp_path: Path) -> None:
    _, parsed = page(
        tmp_path, content(config=ReportConfig(cases=3, thumbnail_size=64), thumbnail=lambda _: picture(exif=True))
    )
    pictures = parsed.all("img")
    assert len(pictures) == 6  # three worst, three least certain
    source = pictures[0]["src"]
    assert source is not None
    drawn = b64decode(source.removeprefix("data:image/jpeg;base64,"))
    with Image.open(io.BytesIO(drawn)) as small:
        assert max(small.size) == 64
        assert not small.getexif()
    assert b"Jane Doe" not in drawn


@pytest.mark.parametrize("given", [None, b"not a picture", picture()[:300]])
def test_a_missing_or_broken_picture_leaves_a_blank(tmp_path: Path, given: bytes | None) -> None:
    _, parsed = page(tmp_path, content(thumbnail=lambda _: given))
    assert not parsed.all("img")
    assert "no picture" in parsed.text


def test_pictures_off_asks_for_none(tmp_path: Path) -> None:
    asked: list[str] = []
    _, parsed = page(tmp_path, content(config=ReportConfig(images=False), thumbnail=asked.append))
    assert not parsed.all("img")
    assert asked == []
    assert "Most confidently wrong" in parsed.text


def test_no_cases_at_all(tmp_path: Path) -> None:
    _, parsed = page(tmp_path, content(config=ReportConfig(cases=0)))
    assert "Most confidently wrong" not in parsed.text


def refuse(constant: str) -> float:
    raise AssertionError(f"{constant} in JSON")


def test_figures_and_tables_for_machines(tmp_path: Path) -> None:
    given = content()
    write_report(tmp_path, given)
    figures = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert figures["test"]["metrics"] == given.evaluations["test"].metrics
    assert figures["test"]["intervals"]["accuracy"]["low"] == given.evaluations["test"].intervals["accuracy"].low
    assert figures["test"]["groups"] == 20
    for split, judged in given.evaluations.items():
        for name, rows in judged.tables.items():
            with (tmp_path / "tables" / f"{split}_{name}.csv").open(encoding="utf-8", newline="") as file:
                assert len(list(csv.DictReader(file))) == len(rows)
    with (tmp_path / "tables" / "test_per_class.csv").open(encoding="utf-8", newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == LABELS


def test_the_card(tmp_path: Path) -> None:
    write_report(tmp_path, content())
    card = (tmp_path / "MODEL_CARD.md").read_text(encoding="utf-8")
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["model_name"] == "router"
    assert "consilium.load(" in body
    for heading in ("Intended use", "Figures", "Limits", "Data", "Training"):
        assert f"## {heading}" in body
    tables = [line for line in body.splitlines() if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) in (3, 4, 5, 6, 7) for line in tables)
    row = next(line for line in tables if line.startswith("| Accuracy"))
    assert re.search(r"\d+\.\d.% \| \d+\.\d to \d+\.\d \|", row)


def test_test_is_told_first_and_warnings_are_told(tmp_path: Path) -> None:
    _, parsed = page(tmp_path, content())
    assert "On 40 held-out test cases from 20 groups the model named the right class in" in parsed.text
    for told in ("beware of", "There is no column 'age'", "Not judged, because no case of it was here: x_ray|chest"):
        assert told in parsed.text
    for part in ("What it confuses", "Class by class", "By source", "How training went", "Data", "How to reproduce"):
        assert part in parsed.text


def test_an_evaluation_alone_is_enough(tmp_path: Path) -> None:
    for multi_label in (False, True):
        judged = evaluation(multi_label=multi_label, split="new")
        _, parsed = page(
            tmp_path, ReportContent(title="New data", evaluations={"new": judged}, parts=label_parts(LABELS))
        )
        assert "On 40 cases of the split new from 20 groups" in parsed.text
        for part in ("How training went", "Cases by", "How to reproduce"):
            assert part not in parsed.text
        assert ("What it confuses" in parsed.text) is not multi_label


def test_nothing_judged_still_gives_a_page(tmp_path: Path) -> None:
    text, _ = page(tmp_path, ReportContent(title="Empty", evaluations={}, parts=label_parts([])))
    assert "Empty" in text


def test_undefined_figures_are_dashes(tmp_path: Path) -> None:
    judged = Evaluation(split="test", cases=1, metrics={"accuracy": 1.0, "macro_auroc": None})
    text, _ = page(tmp_path, ReportContent(title="One", evaluations={"test": judged}, parts=label_parts(["a"])))
    assert "None" not in text
    assert "nan" not in text.split("</style>")[1].lower()


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    assert write_report(tmp_path / "a", content()).read_bytes() == write_report(tmp_path / "b", content()).read_bytes()


def test_csv_keeps_columns_of_all_rows() -> None:
    assert to_csv([{"a": 1}, {"a": None, "b": 'x,"y"'}]) == 'a,b\n1,\n,"x,""y"""\n'


def test_pivot() -> None:
    rows = [
        {"source": "a", "split": "test", "label": "ct", "cases": 1},
        {"source": "b", "split": "train", "label": "ct", "cases": 2},
    ]
    assert pivot(rows, key="label") == [{"label": "ct", "train": 2, "test": 1, "all": 3}]
    assert pivot([], key="label") == []


def test_labels_break_at_their_joints_and_stay_escaped() -> None:
    assert soft_breaks("x_ray.chest") == "x_<wbr>ray.<wbr>chest"
    assert soft_breaks("<b>_1") == "&lt;b&gt;_<wbr>1"


def test_smooth_keeps_short_curves_and_averages_long_ones() -> None:
    short = [(1.0, 2.0), (2.0, 4.0)]
    assert smooth(short) == short
    long = smooth([(float(n), float(n % 2)) for n in range(1000)], at_most=100)
    assert len(long) == 100
    assert {y for _, y in long} == {0.5}


def of_a_tree(*, thresholds: bool, flat: bool = False) -> ReportContent:
    labels = LabelTree.from_labels([[f"rad.{NASTY}", "rad.ct", "mic"]], nested=not flat)
    calibration = Calibration(thresholds=[0.6, 0.5], wanted_accuracy=0.999) if thresholds else Calibration()
    judge = TreeEvaluator(
        labels, config=EvaluationConfig(bootstrap_samples=20), answers=AnswersConfig(), calibration=calibration
    )
    judged = judge.evaluate(outputs(labels, [n % len(labels) for n in range(40)], skill=1.0), split="test")
    return content(evaluations={"test": judged}, parts=label_parts(labels.leaves))


def test_a_tree_is_shown_with_its_levels_and_decisions(tmp_path: Path) -> None:
    text, parsed = page(tmp_path, of_a_tree(thresholds=True))
    for part in ("The label tree", "Level by level", "Decision by decision", "Every node in figures", "asked was 99.9"):
        assert part in parsed.text
    assert NASTY not in text
    drawn = {ElementTree.fromstring(svg).get("class") for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)}
    assert "tree" in drawn
    card = (tmp_path / "MODEL_CARD.md").read_text(encoding="utf-8")
    for part in ("## The label tree", "| whole path |", "## When it does not know", "says “unknown”"):
        assert part in card
    table = card[card.index("| level |") :].split("\n\n")[0].splitlines()
    assert len(table) == 5  # head, rule, two levels, whole path
    assert {line.count("|") for line in table} == {6}


def test_where_every_case_is_answered_nothing_is_said_of_thresholds(tmp_path: Path) -> None:
    for flat in (True, False):
        _, parsed = page(tmp_path, of_a_tree(thresholds=False, flat=flat))
        assert "When it does not know" in parsed.text
        assert "It answers every case, however unsure it is" in parsed.text
        assert "right when answered" not in parsed.text
        assert ("The label tree" in parsed.text) is not flat
        assert "names one of its classes whatever" in (tmp_path / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_a_flat_task_that_abstains(tmp_path: Path) -> None:
    _, parsed = page(tmp_path, of_a_tree(thresholds=True, flat=True))
    assert "The label tree" not in parsed.text
    for part in ("Right when answered", "right when answered", "are “unknown”", "asked for: the threshold"):
        assert part in parsed.text


def test_several_labels_a_case_have_no_abstention(tmp_path: Path) -> None:
    judged = evaluation(multi_label=True)
    _, parsed = page(tmp_path, ReportContent(title="Many", evaluations={"test": judged}, parts=label_parts(LABELS)))
    assert "When it does not know" not in parsed.text
    assert "When it does not know" not in (tmp_path / "MODEL_CARD.md").read_text(encoding="utf-8")
