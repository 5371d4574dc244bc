"""Run folders of earlier versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from consilium.core.config import build, parse_yaml, to_yaml
from consilium.core.errors import RunFolderError
from consilium.core.files import write_text
from consilium.experiment import Experiment
from consilium.training.runs import CONFIG, find_run, new_run


def experiment_of(folder: Path, source: dict[str, Any]) -> Experiment:
    tree = {
        "name": "old",
        "task": {"vision": {"name": "resnet18", "pretrained": False}},
        "data": {"sources": [source]},
        "output": {"root": str(folder / "runs")},
    }
    return build(Experiment, tree, origin="test")


def test_a_run_goes_on_though_keys_came_since_it_was_started(tmp_path: Path) -> None:
    experiment = experiment_of(tmp_path, {"kind": "folder", "name": "s", "path": str(tmp_path)})
    folder = new_run(
        experiment.output, name="old", config=experiment, limit=None, data_fingerprint="x", precision="fp32"
    )
    saved = parse_yaml(to_yaml(experiment), origin="test")
    del saved["data"]["split"]["every_class"]
    del saved["data"]["sources"][0]["group_by"]
    write_text(folder / CONFIG, yaml.safe_dump(saved))
    found = find_run(experiment.output, name="old", config=experiment, limit=None, data_fingerprints=["x"], resume=True)
    assert found == folder


@pytest.mark.parametrize(
    ("given", "fingerprint", "refused"),
    [
        (None, "x", None),
        (None, "y", "the data changed since"),
        ("<other>", "x", r'data\.sources\.0\.attachment_token was "<\|reserved_special_token_0\|>" and is "<other>"'),
    ],
)
def test_a_default_that_became_another_one_is_judged_by_the_data(
    tmp_path: Path, given: str | None, fingerprint: str, refused: str | None
) -> None:
    source = {"kind": "jsonl", "name": "s", "path": str(tmp_path / "a.jsonl")}
    former = experiment_of(tmp_path, {**source, "attachment_token": "<|reserved_special_token_0|>"})
    now = experiment_of(tmp_path, source if given is None else {**source, "attachment_token": given})
    folder = new_run(former.output, name="old", config=former, limit=None, data_fingerprint="x", precision="fp32")

    def find() -> Path | None:
        return find_run(now.output, name="old", config=now, limit=None, data_fingerprints=[fingerprint], resume=True)

    if refused is None:
        assert find() == folder
    else:
        with pytest.raises(RunFolderError, match=refused):
            find()
