"""Run folders of earlier versions."""

from __future__ import annotations

from pathlib import Path

import yaml

from consilium.core.config import build, parse_yaml, to_yaml
from consilium.core.files import write_text
from consilium.experiment import Experiment
from consilium.training.runs import CONFIG, find_run, new_run


def test_a_run_goes_on_though_keys_came_since_it_was_started(tmp_path: Path) -> None:
    tree = {
        "name": "old",
        "task": {"vision": {"name": "resnet18", "pretrained": False}},
        "data": {"sources": [{"kind": "folder", "name": "s", "path": str(tmp_path)}]},
        "output": {"root": str(tmp_path / "runs")},
    }
    experiment = build(Experiment, tree, origin="test")
    folder = new_run(
        experiment.output, name="old", config=experiment, limit=None, data_fingerprint="x", precision="fp32"
    )
    saved = parse_yaml(to_yaml(experiment), origin="test")
    del saved["data"]["split"]["every_class"]
    del saved["data"]["sources"][0]["group_by"]
    write_text(folder / CONFIG, yaml.safe_dump(saved))
    found = find_run(experiment.output, name="old", config=experiment, limit=None, data_fingerprints=["x"], resume=True)
    assert found == folder
