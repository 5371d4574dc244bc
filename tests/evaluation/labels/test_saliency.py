"""Which answers are explained, and how their maps look in a report."""

from __future__ import annotations

import io
from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from consilium.core.evaluation import Outputs
from consilium.core.labels import LabelTree
from consilium.evaluation.config import ReportConfig
from consilium.evaluation.labels.saliency import Said, SaliencyMap, choose
from tests.evaluation.report.test_page import NASTY, content, page

FLAT = LabelTree(["a", "b", "c"])


def outputs(probabilities: object, targets: object, *, groups: Sequence[str] = ()) -> Outputs:
    probabilities_NM = np.array(probabilities, dtype=np.float32)
    ids = [str(case) for case in range(len(probabilities_NM))]
    return Outputs(
        arrays={"probabilities": probabilities_NM}, targets=np.array(targets), ids=ids, groups=groups or ids, columns={}
    )


def chosen(
    found: Outputs, count: int, *, labels: LabelTree = FLAT, thresholds: Sequence[float | None] = ()
) -> list[Said]:
    return choose(found, labels=labels, thresholds=thresholds, threshold=0.5, count=count)


def test_the_surest_errors_come_first_then_usual_right_answers_of_what_they_named() -> None:
    found = outputs(
        [
            [0.6, 0.3, 0.1],  # 0: c called a
            [0.1, 0.8, 0.1],  # 1: a called b
            [0.7, 0.2, 0.1],  # 2: b called a
            [0.9, 0.1, 0.0],  # 3 to 5: a, right
            [0.5, 0.3, 0.2],
            [0.8, 0.1, 0.1],
            [0.1, 0.7, 0.2],  # 6: b, right
            [0.0, 0.0, 1.0],  # 7 and 8: c, right
            [0.0, 0.2, 0.8],
            [0.0, 0.0, 1.0],  # 9: without a label
        ],
        [2, 0, 1, 0, 0, 0, 1, 2, 2, -1],
    )
    wrong = [Said(1, 1, right=False), Said(2, 0, right=False), Said(0, 0, right=False)]
    right = [Said(6, 1, right=True), Said(5, 0, right=True), Said(8, 2, right=True)]
    assert chosen(found, 6) == [*wrong, *right]
    assert chosen(found, 3) == [*wrong[:2], right[0]]
    assert chosen(found, 1) == wrong[:1]
    assert chosen(found, 0) == []


def test_one_patient_gives_one_error() -> None:
    found = outputs([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.7, 0.3, 0.0]], [1, 1, 2], groups=["p", "p", "q"])
    assert chosen(found, 6) == [Said(0, 0, right=False), Said(2, 0, right=False)]


def test_without_errors_the_most_frequent_labels_are_shown() -> None:
    found = outputs([[0.9, 0.1, 0.0], [0.1, 0.8, 0.1], [0.1, 0.9, 0.0]], [0, 1, 1])
    assert chosen(found, 6) == [Said(1, 1, right=True), Said(0, 0, right=True)]
    assert chosen(found, 1) == [Said(1, 1, right=True)]


def test_of_many_labels_those_that_were_given_are_explained() -> None:
    # A label that was missed has no probability to lose, and one that is not known is neither right nor wrong.
    found = outputs([[0.9, 0.6, 0.1], [0.2, 0.7, 0.99]], [[0.0, 1.0, 1.0], [1.0, 0.0, float("nan")]])
    assert chosen(found, 6) == [Said(0, 0, right=False), Said(1, 1, right=False), Said(0, 1, right=True)]


def test_in_a_tree_the_answer_counts_wherever_it_stops() -> None:
    tree = LabelTree(["eye", "eye.oct", "eye.photo", "skin"], nested=True)
    found = outputs(
        [
            [0.8, 0.7, 0.1, 0.2],  # 0: eye.oct is right
            [0.8, 0.5, 0.3, 0.2],  # 1: eye.photo called eye.oct; with a threshold right, since it stops at eye
            [0.9, 0.8, 0.1, 0.1],  # 2: its label stops at eye, so nobody knows; with a threshold too low to tell
            [0.7, 0.1, 0.6, 0.3],  # 3: skin called eye.photo
            [0.4, 0.2, 0.2, 0.6],  # 4: skin; unknown with a threshold
        ],
        [1, 2, 0, 3, 3],
    )
    whole = chosen(found, 9, labels=tree)
    assert whole == [Said(3, 2, right=False), Said(1, 1, right=False), Said(0, 1, right=True), Said(4, 3, right=True)]
    careful = chosen(found, 9, labels=tree, thresholds=[0.65, 0.75])
    assert careful == [Said(3, 0, right=False), Said(1, 0, right=True)]


@given(st.integers(0, 30), st.integers(0, 8), st.integers(0, 2**32 - 1))
def test_what_is_chosen_is_what_was_said(cases: int, count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    found = outputs(random.dirichlet(np.ones(3), cases).reshape(cases, 3), random.integers(-1, 3, cases))
    said = chosen(found, count)
    assert len(said) <= count
    assert len({own.case for own in said}) == len(said)
    for own in said:
        assert own.label == found.arrays["probabilities"][own.case].argmax()
        assert own.right == (own.label == found.targets[own.case])
        assert found.targets[own.case] >= 0
    assert sum(not own.right for own in said) <= -(-count // 2)


# -- Pictures -----------------------------------------------------------------------------------------------------


def a_map(drops: object = None, *, shape: tuple[int, int] = (48, 48), name: str = "case") -> SaliencyMap:
    given = np.zeros((6, 6))
    given[1, 4] = 0.62
    return SaliencyMap(
        id=name,
        truth=NASTY,
        label="ct",
        right=False,
        probability=0.97,
        drops_PP=given if drops is None else np.array(drops),
        image_HWC=np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8),
    )


def opened(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("L"), dtype=float)


def cells(grey_HW: np.ndarray) -> np.ndarray:
    return grey_HW.reshape(6, -1, 6, grey_HW.shape[1] // 6).mean((1, 3))


def test_heat_is_darkest_where_the_fall_is_largest_and_nowhere_else() -> None:
    own = a_map()
    grey = cells(opened(own.heat(size=96)))
    assert np.unravel_index(grey.argmin(), grey.shape) == (1, 4)
    rows, columns = np.indices(grey.shape)
    away = (abs(rows - 1) > 1) | (abs(columns - 4) > 1)
    assert grey[away].min() > 195
    assert grey[1, 4] < 140
    plain = cells(opened(a_map(np.zeros((6, 6))).heat(size=96)))
    np.testing.assert_allclose(grey[away], plain[away], atol=1)


def test_a_rise_is_no_heat_and_a_small_fall_little() -> None:
    plain = opened(a_map(np.zeros((6, 6))).heat(size=96))
    np.testing.assert_array_equal(opened(a_map(np.full((6, 6), -0.5)).heat(size=96)), plain)
    faint = cells(opened(a_map(np.eye(6) * 0.005).heat(size=96)))
    assert faint.min() > 180


def test_pictures_keep_the_shape_of_the_image() -> None:
    own = a_map(shape=(30, 60))
    assert opened(own.image(size=128)).shape == opened(own.heat(size=128)).shape == (64, 128)


@pytest.mark.parametrize(
    ("cell", "place"),
    [
        ((0, 0), "top left"),
        ((1, 4), "top right"),
        ((2, 3), "centre"),
        ((3, 0), "middle left"),
        ((5, 2), "bottom centre"),
    ],
    ids=str,
)
def test_places_have_names(cell: tuple[int, int], place: str) -> None:
    drops = np.full((6, 6), -0.1)
    drops[cell] = 0.2
    assert a_map(drops).place == place


# -- The report ---------------------------------------------------------------------------------------------------


def test_a_report_tells_in_words_what_the_pictures_show(tmp_path: Path) -> None:
    drops = np.zeros((6, 6))
    drops[0, 0] = -0.25
    drops[5, 5] = 0.5
    maps = [a_map(), a_map(np.full((6, 6), 0.0123)), a_map(drops, name=NASTY)]
    text, parsed = page(tmp_path, content(maps=maps))
    section = " ".join(text[text.index('<section id="saliency">') :].split("</section>")[0].split())
    assert "Darkest (top right): covering this lowers the probability of ct by 0.62." in section
    assert "No single place matters: covering any one lowers the probability of ct by at most 0.012." in section
    assert "lowers the probability of ct by 0.50. Covering another place raises it by up to 0.25." in section
    assert NASTY not in text
    told = [attributes["alt"] for attributes in parsed.all("img")][-6:]
    assert told == [
        "Case case as the model sees it",
        "A map that is darkest at the top right",
        "Case case as the model sees it",
        "A map without one place that matters",
        f"Case {NASTY} as the model sees it",
        "A map that is darkest at the bottom right",
    ]
    for attributes in parsed.all("img")[-6:]:
        source = attributes["src"]
        assert source is not None
        assert source.startswith("data:image/jpeg;base64,")
        data = b64decode(source.partition(",")[2])
        assert len(data) < 20_000
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (128, 128)
            assert not image.getexif()
            assert "comment" not in image.info


@pytest.mark.parametrize(
    "changes", [{"config": ReportConfig(images=False), "maps": [a_map()]}, {"maps": []}], ids=["images", "none"]
)
def test_no_map_no_section(tmp_path: Path, changes: dict[str, object]) -> None:
    text, _ = page(tmp_path, content(**changes))
    assert 'id="saliency"' not in text
    assert "Covering" not in text
