"""Runs ``consilium`` as a person does, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from consilium.cli import main
from consilium.core.config import to_yaml
from tests.tiny import tiny_experiment


@dataclass(frozen=True)
class Answer:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """The JSON lines of ``out``."""
        return [json.loads(line) for line in self.out.splitlines()]


Cli = Callable[..., Answer]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """``cli("predict", bundle, "a.png")``."""

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr("sys.argv", ["consilium", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        code = stopped.value.code
        return Answer(code if isinstance(code, int) else int(code is not None), printed.out, printed.err)

    return run


@pytest.fixture
def recipe(tiny_images: Path, tmp_path: Path) -> Path:
    """The tiny experiment as a YAML file, with runs and store in the test's own folder."""
    path = tmp_path / "tiny.yaml"
    experiment = tiny_experiment(tiny_images, tmp_path / "runs", f"data.store.root={tmp_path / 'stores'}")
    path.write_text(to_yaml(experiment), encoding="utf-8")
    return path
