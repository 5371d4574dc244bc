"""A TSV and JSONL as LMDB without a store: the same cases, in one step, and what is wrong with the files."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from consilium.cli import app
from consilium.core.errors import BadRowsError, ConsiliumError, DataError
from consilium.data.case import Case
from consilium.data.store import export_lmdb
from consilium.data.store.export_from_tsv import export_tsv
from tests.data.samples import image_bytes, read, write_jsonl
from tests.data.sources.lmdbs import contents

LEFT, RIGHT, OTHER = (base64.b64encode(image_bytes(seed)).decode() for seed in range(3))


def write(folder: Path, lines: Sequence[str], texts: Sequence[Any], *, name: str = "eyes") -> str:
    """A TSV and its JSONL."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.tsv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    write_jsonl(folder / f"{name.replace('_imgs', '_texts')}.jsonl", texts)
    return str(folder / f"{name}.tsv")


def told(cases: list[Case]) -> list[Any]:
    """What matters of cases, wherever they were read."""
    keys = ("id", "group", "split", "views", "texts", "labels", "masks", "is_gt", "meta")
    return [[getattr(case, key) for key in keys] for case in cases]


CELLS = st.sampled_from([LEFT, RIGHT, f"{LEFT}\t{RIGHT}", f"\t{OTHER}", f"{OTHER}\t"])
TEXTS = st.fixed_dictionaries(
    {"image_ids": st.lists(st.sampled_from(["a", "b", "c", 7]), min_size=1, max_size=3, unique=True)},
    optional={
        "split": st.sampled_from(["train", "test"]), "label": st.sampled_from(["x", ["x", "y.z"]]), "age": st.just(7),
        "group_id": st.just("p1"), "mask": st.just("masks/m.png"), "is_gt": st.booleans(), "id": st.just("own"),
    },
)  # fmt: skip


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cells=st.lists(CELLS, min_size=4, max_size=4), texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_the_cases_are_those_of_the_tsv(
    tmp_path_factory: pytest.TempPathFactory, cells: list[str], texts: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("tsv")
    rows = [{**row, "text_id": n, "text": f"text {n}", **({"id": f"own{n}"} if "id" in row else {})}
            for n, row in enumerate(texts)]  # fmt: skip
    tsv = write(folder, [f"{key}\t{cell}" for key, cell in zip("abc7", cells, strict=True)], rows)
    of_tsv, bad = read("ret_clip_tsv", Path(tsv), texts=str(folder / "eyes.jsonl"))
    done = export_tsv(tsv, folder / "other" / "eyes.lmdb")
    of_lmdb, still_bad = read("ret_clip_lmdb", folder / "other" / "eyes.lmdb")
    assert not bad
    assert not still_bad
    assert told(of_lmdb) == told(of_tsv)
    assert done.cases == len(of_tsv)


def test_stopped_and_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_lmdb, "BATCH_ROWS", 3)
    texts = [{"text_id": n, "text": f"text {n}", "image_ids": [n % 7]} for n in range(20)]
    tsv = write(tmp_path, [f"{n}\t{LEFT}\t{RIGHT}" for n in range(9)], texts)

    def stop(done: int, total: int | None) -> None:
        assert total == 22
        if done == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_tsv(tsv, tmp_path / "a.lmdb", progress=stop)
    export_tsv(tsv, tmp_path / "a.lmdb")
    export_tsv(tsv, tmp_path / "b.lmdb")
    assert contents(tmp_path / "a.lmdb") == contents(tmp_path / "b.lmdb")
    assert export_tsv(tsv, tmp_path / "a.lmdb").notes == ["the LMDB was there already and holds the same."]


@pytest.mark.parametrize(
    ("line", "text", "reason"),
    [
        ("2", {}, r"eyes\.tsv:2: the line has 1 columns"),
        (f"1\t{LEFT}", {}, r"the image id '1' was given before, in line 1"),
        (f"{'x' * 600}\t{LEFT}", {}, "the id 'xxx.*' cannot stand in an LMDB"),
        (f"num_images\t{LEFT}", {}, "the id 'num_images' cannot stand in an LMDB"),
        ("2\t", {}, "neither an image nor a text"),
        (f"2\t{LEFT}", {"image_ids": ["02"]}, r"eyes\.jsonl:2: image_ids names the image '02', which .* does not have"),
        (f"2\t{LEFT}", {"text": ""}, "the row has no text"),
        (f"2\t{LEFT}", {"text_id": 1}, "the text id '1' was given before"),
    ],
)
def test_bad_rows(tmp_path: Path, line: str, text: dict[str, Any], reason: str) -> None:
    texts = [{"text_id": 1, "text": "a", "image_ids": [1]}, {"text_id": 2, "text": "b", "image_ids": [1], **text}]
    with pytest.raises(BadRowsError, match=rf"1 row cannot be read:\n  - .*{reason}"):
        export_tsv(write(tmp_path, [f"1\t{LEFT}", line], texts), tmp_path / "a.lmdb")
    assert not (tmp_path / "a.lmdb").exists()


@pytest.mark.parametrize("cell", ["ab!c", "abcde", "ab=cd"])
def test_what_is_no_base64(tmp_path: Path, cell: str) -> None:
    tsv = write(tmp_path, [f"1\t{LEFT}", f"2\t{LEFT}\t{cell}"], [{"text_id": 1, "text": "a", "image_ids": [1]}])
    with pytest.raises(DataError, match=r"eyes\.tsv:2: column 3 is no base64 .*Mend it, and run again"):
        export_tsv(tsv, tmp_path / "a.lmdb")
    assert not (tmp_path / "a.lmdb").exists()


def test_the_names_of_ret_clip(tmp_path: Path) -> None:
    tsv = write(tmp_path, [f"1\t{LEFT}"], [{"text_id": 1, "text": "a", "image_ids": [1]}], name="train_imgs")
    assert not export_tsv(tsv, tmp_path / "a.lmdb").notes
    (case,), _ = read("ret_clip_lmdb", tmp_path / "a.lmdb")
    assert case.text == "a"


def test_without_texts_or_images(tmp_path: Path) -> None:
    (tmp_path / "eyes.tsv").write_text(f"1\t{LEFT}\n")
    done = export_tsv(str(tmp_path / "eyes.tsv"), tmp_path / "a.lmdb")
    assert "no texts were found: there is no" in done.notes[0]
    (tmp_path / "eyes.tsv").write_text("\n")
    with pytest.raises(DataError, match="holds no rows"):
        export_tsv(str(tmp_path / "eyes.tsv"), tmp_path / "b.lmdb")
    with pytest.raises(DataError, match=r"none\.tsv does not exist"):
        export_tsv(str(tmp_path / "none.tsv"), tmp_path / "b.lmdb")


def test_the_command(tmp_path: Path) -> None:
    tsv = write(tmp_path, [f"1\t{LEFT}"], [{"text_id": 1, "text": "a", "image_ids": [1]}])
    run = CliRunner().invoke(app, ["data", "export", tsv, "--out", str(tmp_path / "a.lmdb")])
    assert run.exit_code == 0
    assert "1 cases, to be read with kind: ret_clip_lmdb" in run.output
    for arguments in (["--out", "b.jsonl"], ["--out", "b.lmdb", "--split", "train"]):
        run = CliRunner().invoke(app, ["data", "export", tsv, *arguments])
        assert isinstance(run.exception, ConsiliumError)
        assert "as .lmdb alone" in str(run.exception)
