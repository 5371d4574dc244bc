"""The wheel: what is in it, and that it works without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.policy.source import REPOSITORY, SOURCE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built with the locked hatchling."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(REPOSITORY)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = {name for name in names if ".dist-info/" not in name}
    wanted = {
        path.relative_to(SOURCE).as_posix()
        for path in (SOURCE / "consilium").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert package == wanted
    assert "consilium/py.typed" in package
    assert any(name.startswith("consilium/demo/data/") for name in package), "the demo data is missing"
    assert any(name.startswith("consilium/evaluation/templates/") for name in package), (
        "the report templates are missing"
    )
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("LICENSES.md") for name in names)


def test_the_wheel_works_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    code = "import consilium, consilium.cli; print(consilium.__file__, consilium.__version__)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.split()[0] == str(tmp_path / "site" / "consilium" / "__init__.py")
