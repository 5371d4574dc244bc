"""Pseudo-labels (``is_gt: false``) stay out of validation, test and statistics, whatever is renamed and filtered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilium.core.config import build
from consilium.data.cases.load import used_cases
from consilium.data.cases.renames import renamed
from consilium.data.config import DataConfig
from consilium.data.look.pixel_statistics import node_statistics
from consilium.data.store.prepare import prepare
from tests.data.samples import case_table, data_config, write_images, write_jsonl
from tests.labelled import label_needs, take_labelled

RENAMES = {"x": "exp", "x.gel": "exp.gel"}
# Below both nodes that are tried, in every split, so that no draw is refused.
ANCHORS = [
    {"id": f"{split} {label}", "label": label, "split": split, "files": [f"{split} {label}"]}
    for split in ("train", "val", "test")
    for label in ("x.gel.nor", "exp.gel.wes", "x.pla", "gra")
]
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "label": st.sampled_from(["x", "x.gel", "x.gel.nor", "exp.gel.wes", "x.pla", "exp.pla", "gra", "mic"]),
            "split": st.sampled_from(["train", "val", "test"]),
            "is_gt": st.booleans(),
        }
    ),
    max_size=12,
)


def config(node: str, *, pseudo_labels: bool, fraction: float, fold: int | None) -> DataConfig:
    tree: dict[str, Any] = {
        "sources": [{"kind": "folder", "name": "s", "path": "x"}],
        "pseudo_labels": pseudo_labels,
        "filters": {"node": node, "fraction": fraction},
        "split": {} if fold is None else {"folds": 3, "fold": fold},
    }
    return build(DataConfig, tree, origin="test")


@given(
    drawn=ROWS,
    node=st.sampled_from(["root", "exp", "exp.gel"]),
    fraction=st.sampled_from([0.4, 1.0]),
    fold=st.sampled_from([None, 0, 2]),
)
def test_what_is_judged_is_what_it_would_be_without_pseudo_labels(
    drawn: list[dict[str, Any]], node: str, fraction: float, fold: int | None
) -> None:
    rows = [*ANCHORS, *({**row, "id": f"drawn {n}", "files": [f"{n}"]} for n, row in enumerate(drawn))]
    rows = [{**row, "group": row["id"]} for row in rows]
    everything = renamed(case_table(rows), RENAMES)
    trusted = renamed(case_table([row for row in rows if row.get("is_gt", True)]), RENAMES)

    def used(table: Any, split: str, *, pseudo_labels: bool) -> dict[str, tuple[str, ...]]:
        own = config(node, pseudo_labels=pseudo_labels, fraction=fraction, fold=fold)
        found = used_cases(table, config=own, needs=label_needs()).table
        found = found.select(found.rows(split))
        assert split == "train" or found.is_gt.all()
        return dict(zip(found.ids, found.labels, strict=True))

    for split in ("train", "val", "test"):
        without = used(everything, split, pseudo_labels=False)
        assert without == used(trusted, split, pseudo_labels=False)
        if split != "train" and fold is None:
            assert used(everything, split, pseudo_labels=True) == without
        elif split != "train":  # with folds, a label that only pseudo-labels teach may be tested, too
            assert without.items() <= used(everything, split, pseudo_labels=True).items()


@pytest.mark.parametrize("node", ["root", "exp", "exp.gel"])
def test_pixels_and_classes_are_those_of_the_cases_that_train(tmp_path: Path, node: str) -> None:
    rows: list[dict[str, Any]] = [
        {"label": label, "split": split, "is_gt": is_gt}
        for label in ("x.gel.nor", "x.gel.wes", "x.pla", "gra")
        for split in ("train", "val", "test")
        for is_gt in (True, False)
    ]
    rows.append({"label": "x.gel.new", "split": "train", "is_gt": False})
    write_images(tmp_path, [f"{n}.png" for n in range(len(rows))])
    rows = [{**row, "id": str(n), "image": f"{n}.png"} for n, row in enumerate(rows)]
    found = {}
    for name, kept, pseudo_labels in (
        ("all", rows, False),
        ("trusted", [row for row in rows if row["is_gt"]], False),
        ("pseudo", rows, True),
        ("train", [{**row, "is_gt": True} for row in rows if row["is_gt"] or row["split"] == "train"], False),
    ):
        path = write_jsonl(tmp_path / f"{name}.jsonl", kept)
        own = data_config(
            tmp_path,
            {"kind": "jsonl", "name": "s", "path": str(path)},
            rename_labels={"x": "exp"},
            filters={"node": node},
            pseudo_labels=pseudo_labels,
        )
        store = prepare(own).store
        studied = take_labelled(store.table, config=own)
        cases, knowledge = studied.cases, studied.knowledge
        judged = [cases.table.ids[row] for split in ("val", "test") for row in cases.rows[split].tolist()]
        train = [cases.table.ids[row] for row in cases.rows["train"].tolist()]
        statistics = node_statistics(store, cases=cases.table)
        found[name] = (judged, train, knowledge.labels, knowledge.class_counts, statistics)
    assert found["all"] == found["trusted"]
    assert found["pseudo"] == found["train"]
    assert found["pseudo"][0] == found["all"][0]
    assert not np.allclose(found["pseudo"][4]["root"].mean, found["all"][4]["root"].mean, rtol=1e-9)
