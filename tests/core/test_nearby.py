"""What is said of a path that does not exist."""

from __future__ import annotations

from pathlib import Path

import pytest

from consilium.core.nearby import looked_for


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, ``project/work``, with data beside and below it."""
    for name in ("project/tables/a.csv", "project/work/data/b.csv", "project/work/cases.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path / "project/work")
    return tmp_path / "project"


def test_where_a_relative_path_was_looked_for_and_what_is_there(start: Path) -> None:
    work = start / "work"
    where = f" It was looked for at {work}/{{}}, since a relative path starts from the folder you work in."
    assert looked_for("none.txt") == where.format("none.txt")
    assert looked_for("tables/a.csv") == f"{where.format('tables/a.csv')} {start}/tables/a.csv exists."
    assert looked_for("b.csv") == f"{where.format('b.csv')} {work}/data/b.csv exists."
    assert looked_for("case.csv") == f"{where.format('case.csv')} {work} has no 'case.csv'; did you mean 'cases.csv'?"


def test_an_absolute_path_is_named_up_to_where_it_breaks_off(start: Path) -> None:
    assert looked_for(str(start / "work" / "data" / "none")) == ""
    assert looked_for(f"{start}/xyz/data/b.csv") == f" {start} has no 'xyz'."
    assert looked_for(f"{start}/wrok/data/b.csv") == f" {start} has no 'wrok'; did you mean 'work'?"
    assert looked_for("gs://bucket/none") == ""
