"""Files of vectors by id: every form says the same, and what is wrong is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consilium.core.errors import DataError
from consilium.core.vectors import FORMS, VectorFacts, read_vectors, vectors_place

Rows = Sequence[tuple[str, list[float]]]
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), min_size=1, max_size=8)


def npz(path: Path, rows: Rows, **said: str) -> None:
    arrays: dict[str, Any] = {"id": np.array([name for name, _ in rows]), "vector": np.array([own for _, own in rows])}
    np.savez(path, allow_pickle=False, **arrays, **{name: np.array(value) for name, value in said.items()})


def pt(path: Path, rows: Rows, **said: str) -> None:
    vectors = [own for _, own in rows]
    even = len({len(own) for own in vectors}) == 1
    torch.save({"id": [name for name, _ in rows], "vector": torch.tensor(vectors) if even else vectors, **said}, path)


def pt_by_id(path: Path, rows: Rows) -> None:
    torch.save({name: torch.tensor(own) for name, own in rows}, path)


def parquet(path: Path, rows: Rows, **said: str) -> None:
    table = pyarrow.table({"id": [name for name, _ in rows], "vector": [own for _, own in rows]})
    pyarrow.parquet.write_table(table.replace_schema_metadata(said or None), path)


def json_csv(path: Path, rows: Rows, **said: str) -> None:
    _csv(path, ["id", "vector", *said], [[name, json.dumps(own), *said.values()] for name, own in rows])


def wide_csv(path: Path, rows: Rows, **said: str) -> None:
    width = len(rows[0][1])
    names = ["id", *said, *(f"v{number}" for number in range(width))]
    _csv(path, names, [[name, *said.values(), *own] for name, own in rows])


def _csv(path: Path, names: list[str], rows: list[list[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([names, *rows])


WRITERS: dict[str, tuple[str, Callable[..., None]]] = {
    "npz": (".npz", npz),
    "pt": (".pt", pt),
    "pt by id": (".pt", pt_by_id),
    "parquet": (".parquet", parquet),
    "csv of lists": (".csv", json_csv),
    "csv of columns": (".csv", wide_csv),
}
ROWS = [("a", [0.0, 1.0]), ("b", [2.0, 3.0])]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(data=st.data(), form=st.sampled_from(sorted(WRITERS)), width=st.integers(1, 5))
def test_every_form_gives_each_id_its_vector(data: st.DataObject, form: str, width: int, tmp_path: Path) -> None:
    number = st.floats(-1e6, 1e6, width=32)
    vectors = data.draw(st.dictionaries(NAMES, st.lists(number, min_size=width, max_size=width), min_size=1))
    ending, write = WRITERS[form]
    vectors = {name: own for name, own in vectors.items() if form != "pt by id" or name not in ("id", "image")}
    if not vectors:
        return
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}{ending}"
    write(path, list(vectors.items()))
    found = read_vectors(str(path))
    assert found.facts == VectorFacts(width=width)
    assert list(found.rows) == list(vectors)
    for name, own in vectors.items():
        np.testing.assert_array_equal(found.vectors_NF[found.rows[name]], np.array(own, dtype=np.float32))


@pytest.mark.parametrize("form", sorted(WRITERS.keys() - {"pt by id"}))
def test_a_file_says_what_computed_it(form: str, tmp_path: Path) -> None:
    ending, write = WRITERS[form]
    write(tmp_path / f"v{ending}", ROWS, encoder="sapbert", pooling="cls")
    found = read_vectors(str(tmp_path / f"v{ending}")).facts
    assert found == VectorFacts(width=2, encoder="sapbert", pooling="cls")


def test_what_predict_writes_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", image=np.array(["a"]), error=np.array([""]), text_embedding=np.ones((1, 3)))
    assert read_vectors(str(tmp_path / "v.npz")).facts.width == 3


def test_numbers_are_ids_too_and_nothing_is_no_vector(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"id": [7, 8], "vector": [[1.0], None]}), tmp_path / "v.parquet")
    assert list(read_vectors(str(tmp_path / "v.parquet")).rows) == ["7"]


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    npz(tmp_path / "v.npz", ROWS)
    assert len(read_vectors(str(tmp_path / "v.npz")).rows) == 2
    npz(tmp_path / "v.npz", ROWS[:1])
    assert len(read_vectors(str(tmp_path / "v.npz")).rows) == 1


BAD: list[tuple[str, Rows, str]] = [
    ("an id twice", [*ROWS, ("a", [4.0, 5.0])], "has the id 'a' twice; give each case one vector"),
    ("two lengths", [*ROWS, ("c", [4.0])], r"vectors of several lengths: 1 numbers for 'c', 2 numbers for 'a'"),
    ("nan", [*ROWS, ("c", [4.0, float("nan")])], r"NaN or infinite in 1 vector \(the first: of 'c'\)"),
    ("infinite", [*ROWS, ("c", [float("-inf"), 0.0])], r"NaN or infinite in 1 vector \(the first: of 'c'\)"),
]


@pytest.mark.parametrize(("what", "rows", "message"), BAD, ids=[what for what, *_ in BAD])
@pytest.mark.parametrize("form", sorted(WRITERS.keys() - {"pt by id"}))
def test_bad_vectors_are_refused(form: str, what: str, rows: Rows, message: str, tmp_path: Path) -> None:
    if what == "two lengths" and form in ("npz", "csv of columns"):
        pytest.skip("this form cannot say that")
    ending, write = WRITERS[form]
    write(tmp_path / f"v{ending}", rows)
    with pytest.raises(DataError, match=message):
        read_vectors(str(tmp_path / f"v{ending}"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.csv", "id,v0,v1\na,1\n", r"line 2 of .*v.csv has not as many values"),
        ("v.csv", "id,v0\na,one\n", r"v.csv cannot be read: could not convert string to float: 'one'"),
        ("v.csv", 'id,vector\na,"{}"\n', r"has '{}' where a vector should be; expected a list of numbers"),
        ("v.csv", "name,v0\na,1\n", r"has no column id or image; it has name, v0"),
        ("v.csv", "", r"has no column id or image; it has nothing"),
        ("v.csv", "id,vector\na,\n", r"holds no vector"),
        ("v.npz", "no archive", r"v.npz cannot be read"),
        ("v.pt", "no archive", r"v.pt cannot be read"),
        ("v.parquet", "no table", r"v.parquet cannot be read"),
        ("v.txt", "", f"expected a name that ends in {', '.join(FORMS)}"),
    ],
)
def test_what_is_no_file_of_vectors_is_refused(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_vectors(str(tmp_path / name))


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", id=np.array(["a"]), vector=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match=r"cannot be read: Object arrays cannot be loaded"):
        read_vectors(str(tmp_path / "v.npz"))


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(DataError, match=r"the vectors in none.npz cannot be read"):
        read_vectors("none.npz")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"width": 2, "encoder": "minilm"}, "have encoder minilm, but the model was trained on sapbert"),
        ({"width": 2, "pooling": "mean"}, "have pooling mean, but the model was trained on cls"),
        ({"width": 3}, "have width 3, but the model was trained on 2"),
    ],
)
def test_vectors_of_another_encoder_are_refused(found: dict[str, Any], message: str) -> None:
    known = VectorFacts(width=2, encoder="sapbert", pooling="cls")
    known.refuse_other(VectorFacts(width=2), place="v.npz", wanted_by="the model was trained on")  # it says nothing
    with pytest.raises(DataError, match=message):
        known.refuse_other(VectorFacts(**found), place="v.npz", wanted_by="the model was trained on")


@pytest.mark.parametrize(
    ("name", "folder", "place"),
    [
        ("v.npz", "gs://bucket/ham/embeddings", "gs://bucket/ham/embeddings/v.npz"),
        ("v.npz", None, "v.npz"),
        ("/there/v.npz", "data/ham", "/there/v.npz"),
        ("gs://other/v.npz", "data/ham", "gs://other/v.npz"),
    ],
)
def test_a_bare_name_lies_in_the_folder(name: str, folder: str | None, place: str) -> None:
    assert vectors_place(name, folder=folder) == place


def test_a_bare_name_of_a_file_at_hand_is_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    npz(tmp_path / "v.npz", ROWS)
    assert vectors_place("v.npz", folder="data/ham") == "v.npz"
