"""The base install loads a bundle and predicts; what needs an extra says which one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.policy.test_frame import PROJECT

# jinja2 comes with torch.
ABSENT = sorted(
    {re.split(r"[<>=!~;\[ ]", line)[0] for line in PROJECT["project"]["optional-dependencies"]["train"]} - {"Jinja2"}
)


def run_without_train(code: str, *, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in an interpreter that finds no package of the extra `train`."""
    script = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {ABSENT}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)

sys.meta_path.insert(0, Absent())
{code}
"""
    return subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)


def test_the_extra_is_away(tmp_path: Path) -> None:
    assert {"accelerate", "datasets", "pyarrow", "tensorboard"} <= set(ABSENT)
    assert "No module named 'pyarrow'" in run_without_train("import pyarrow", folder=tmp_path).stderr


def test_the_base_install_predicts(tmp_path: Path) -> None:
    run = run_without_train("import consilium, consilium.predictions; consilium.load, consilium.Index", folder=tmp_path)
    assert run.returncode == 0, run.stderr


def test_a_command_that_needs_an_extra_says_so(tmp_path: Path) -> None:
    code = "sys.argv = ['consilium', 'demo', '--out', 'out']\nfrom consilium.cli import main\nmain()"
    run = run_without_train(code, folder=tmp_path)
    assert run.returncode == 2, run.stderr
    assert "pip install 'consilium[train]'" in run.stderr
    assert "Traceback" not in run.stderr
