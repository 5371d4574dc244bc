"""csv, parquet and jsonl, row by row."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consilium.core.errors import ConfigError, DataError
from consilium.core.places import FileFacts
from consilium.data.case import Mask, Text
from consilium.data.sources.config import Columns
from tests.data.samples import image_bytes, read, write_images, write_jsonl

TOKEN = "<|reserved_special_token_0|>"


def modalities(*paths: str) -> list[dict[str, str]]:
    return [{"type": "image", "value": path} for path in paths]


# ---------------------------------------------------------------- jsonl


def test_multimediset_rows(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "a.jsonl",
        [
            {"text": "One lung.", "modalities": modalities("images/a.jpg"), "label": 3, "split": "VAL",
             "group_id": "p1", "age": 70, "tags": ["x"], "is_gt": False},
            {"conversations": [{"role": "user", "content": f"{TOKEN} Which eye is {TOKEN}?"},
                               {"from": "assistant", "value": "The left."}],
             "modalities": [{"type": "image", "value": "l.jpg", "name": "left"}, {"type": "image", "value": "r.jpg"}]},
            {"text": "No image.", "modalities": []},
        ],
    )  # fmt: skip
    (first, second, third), bad = read("jsonl", path)
    assert not bad
    assert (first.labels, first.split, first.group, first.is_gt) == (("3",), "val", "p1", False)
    assert first.meta == {"age": "70", "tags": '["x"]'}
    assert first.views[0].image == str(tmp_path / "images/a.jpg")
    assert second.text == "Which eye is ?\nThe left."
    assert [(view.image, view.name) for view in second.views] == [
        (str(tmp_path / "l.jpg"), "left"), (str(tmp_path / "r.jpg"), ""),
    ]  # fmt: skip
    assert (second.id, second.line, second.split, second.labels) == ("s:2", 2, None, ())
    assert (third.views, third.text) == ((), "No image.")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"text": "cut', "not valid JSON"),
        ("[1, 2]", "holds a list"),
        ('"text"', "holds a str"),
        ("[" * 100_000, "not valid JSON"),
        ('{"label": "ct"}', "neither an image nor a text"),
        ('{"text": "", "modalities": []}', "neither an image nor a text"),
        ('{"text": {"a": "b"}}', "'text' is a dict; expected text, or a list of texts (columns.text: null if it"),
        ('{"text": 7}', "'text' is the number 7; expected text"),
        ('{"text": true}', "'text' is a bool; expected text"),
        ('{"text": ["a", 7.5]}', "item 2 of 'text' is the number 7.5; expected text"),
        ('{"text": ["a", ["b"]]}', "item 2 of 'text' is a list; expected text"),
        (json.dumps({"text": ["a"] * 101}), "'text' is a list of 101 texts; expected at most 100 of a case. If these"),
        ('{"text": []}', "neither an image nor a text"),
        ('{"text": "a", "modalities": [{"type": "video", "value": "a.mp4"}]}', "type 'video' is not supported"),
        ('{"text": "a", "modalities": [{"type": "image"}]}', "has no value"),
        ('{"text": "a", "modalities": ["a.jpg"]}', "holds a str"),
        ('{"text": "a", "modalities": [{"value": "https://x.org/a.jpg"}]}', "is an address"),
        ('{"text": "a", "modalities": [{"value": "a\\u0000.jpg"}]}', "zero byte"),
        (
            json.dumps({"text": f"{TOKEN}{TOKEN} two", "modalities": modalities("a.jpg")}),
            "2 attachment tokens, the row 1 im",
        ),
        (json.dumps({"text": f"{TOKEN} one"}), "1 attachment tokens, the row 0 im"),
        ('{"conversations": "hello"}', "conversations is a str"),
        ('{"conversations": [{"role": "user"}]}', "neither content nor value"),
        ('{"text": "a", "split": "fold1"}', "split 'fold1' is unknown"),
        ('{"text": "a", "label": "a..b"}', "has an empty part"),
        ('{"text": "a", "mask": ["m.png"]}', "mask is a list"),
        ('{"text": "a", "is_gt": "perhaps"}', "expected true or false"),
        ('{"text": "\\ud800"}', "not valid text"),
        ('{"text": "a", "\\udfff": 1}', "not valid text"),
    ],
)
def test_bad_row_in_the_middle_of_a_jsonl(tmp_path: Path, row: str, reason: str) -> None:
    cases, bad = read("jsonl", write_jsonl(tmp_path / "a.jsonl", [{"text": "before"}, row, {"text": "after"}]))
    assert [(case.text, case.line) for case in cases] == [("before", 1), ("after", 3)]
    assert [(row.source, row.file, row.line) for row in bad] == [("s", str(tmp_path / "a.jsonl"), 2)]
    assert reason in bad[0].reason


def test_jsonl_with_byte_order_mark_blank_lines_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\n{"text": "\xff\xfe"}\n{"text": "b"}')
    cases, bad = read("jsonl", path)
    assert [(case.text, case.line) for case in cases] == [("a", 1), ("b", 4)]
    assert [row.line for row in bad] == [3]


def test_jsonl_image_column_and_renamed_columns(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"left": "l.jpg", "right": None, "caption": "x", "text": "kept"}])
    (case,), _ = read(
        "jsonl", path, columns={"image": ["left", "right"], "text": "caption"}, image_root=str(tmp_path / "i")
    )
    assert [(view.image, view.name) for view in case.views] == [(str(tmp_path / "i/l.jpg"), "left")]
    assert (case.text, case.meta) == ("x", {"text": "kept"})


def test_jsonl_column_that_no_row_has(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "label_name": "ct"}])
    with pytest.raises(ConfigError, match=r"columns\.label is 'label_nam', .* did you mean `label_name`\?"):
        read("jsonl", path, columns={"label": "label_nam"})


words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12).filter(
    lambda text: text == text.strip()
)
names = words.filter(lambda text: text not in ("nan", "None", "<NA>", "NaT"))  # those are gaps
plain = words.filter(lambda text: "." not in text and "/" not in text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {"text": words, "label": plain, "group_id": names, "split": st.sampled_from(["train", "test", None])},
            optional={"age": st.integers(-9, 200), "site": words, "modalities": st.lists(plain, max_size=3)},
        ),
        min_size=1, max_size=6,
    )
)  # fmt: skip
def test_jsonl_round_trip(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """Whatever text is written is read back, whatever it is made of."""
    written = [{**row, "modalities": modalities(*row.get("modalities", []))} for row in rows]
    cases, bad = read("jsonl", write_jsonl(tmp_path / "a.jsonl", written))
    assert not bad
    for row, case in zip(rows, cases, strict=True):
        assert (case.text, case.labels, case.group, case.split) == (
            row["text"], (row["label"],), row["group_id"], row["split"],
        )  # fmt: skip
        assert [Path(view.image).name for view in case.views] == row.get("modalities", [])
        assert case.meta == {key: str(row[key]) for key in ("age", "site") if key in row}


# ---------------------------------------------------------------- csv


def test_csv_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        'img,split_set,label,is_gt,note\na.jpg,TRAIN,rad.ct|rad,1,"x, y"\nb.jpg,UNL,,0,\n', encoding="utf-8-sig"
    )
    (first, second), bad = read("csv", path, columns={"image": "img", "split": "split_set", "label_separator": "|"})
    assert not bad
    assert (first.split, first.labels, first.is_gt, first.meta) == ("train", ("rad.ct", "rad"), True, {"note": "x, y"})
    assert (second.split, second.labels, second.is_gt, second.meta) == ("unlabelled", (), False, {})
    assert (first.id, first.group, first.line, second.line) == ("s:2", "s:a.jpg", 2, 3)


def test_csv_bad_rows_keep_their_line_and_the_rest_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        b"image,label\n"
        b"a.jpg,ct\n"
        b"b.jpg\n"  # 3: too few
        b"c.jpg,ct,more\n"  # 4: too many
        b'd.jpg,"two\nlines"\n'  # 5 and 6: fine
        b"e\xff.jpg,ct\n"  # 7: not UTF-8
        b'f.jpg,"ct"x\n'  # 8: stray text after a quote
        b"\n"
        b"g.jpg,ct\n"  # 10
        b'h.jpg,"never closed\n'  # 11
    )
    cases, bad = read("csv", path)
    assert [(Path(case.views[0].image).name, case.line) for case in cases] == [
        ("a.jpg", 2),
        ("d.jpg", 5),
        ("g.jpg", 10),
    ]
    assert [row.line for row in bad] == [3, 4, 7, 8, 11]
    assert [row.reason.split(":")[0] for row in bad] == [
        "the row has 1 cells, the header 2", "the row has 3 cells, the header 2",
        "the row is not UTF-8 text; save the file as UTF-8", "not a valid csv row", "not a valid csv row",
    ]  # fmt: skip


def test_rows_that_an_open_quote_swallows_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('image,label\na.jpg,"ct\nb.jpg,ct\nc.jpg,ct\nd.jpg,"mri"\ne.jpg,ct\n')
    cases, bad = read("csv", path)
    assert [case.line for case in cases] == [6]
    assert [(row.line, row.reason.split(";")[1]) for row in bad] == [(2, " it runs to line 5, look for an open quote")]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(words, plain, words), min_size=1, max_size=6))
def test_csv_round_trip(tmp_path: Path, rows: list[tuple[str, str, str]]) -> None:
    path = tmp_path / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label", "site"), *rows])
    cases, bad = read("csv", path)
    assert not bad
    assert [(case.text, *case.labels, case.meta["site"]) for case in cases] == rows


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"label": "modalty"}, r"columns\.label is 'modalty', .* did you mean `modality`\?"),
        ({"image": "imgae_path"}, r"columns\.image is 'imgae_path', .* did you mean `image_path`\?"),
        ({"image": ["image_path", "zzz"]}, r"columns\.image is 'zzz', .* its columns are: image_path, modality"),
        ({"meta": ["agee"]}, r"columns\.meta is 'agee'"),
        ({}, r"neither an image nor a text column was found"),
    ],
)
def test_columns_that_do_not_exist(tmp_path: Path, columns: dict[str, Any], complaint: str) -> None:
    (tmp_path / "a.csv").write_text("image_path,modality\na.jpg,ct\n")
    with pytest.raises(ConfigError, match=complaint):
        read("csv", tmp_path / "a.csv", columns=columns)


def test_default_columns_may_be_absent_and_a_column_may_be_turned_off(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,label,age\na.jpg,ct,7\n")
    (case,), _ = read("csv", tmp_path / "a.csv", columns={"label": None, "meta": ["age"]})
    assert (case.labels, case.split, case.text, case.is_gt, case.meta) == ((), None, None, True, {"age": "7"})


@pytest.mark.parametrize(
    ("header", "complaint"), [(b'"image"x,label', "is no header"), (b"image,labe\xff", "is not UTF-8")]
)
def test_unusable_header(tmp_path: Path, header: bytes, complaint: str) -> None:
    (tmp_path / "a.csv").write_bytes(header + b"\na.jpg,ct\n")
    with pytest.raises(DataError, match=complaint):
        read("csv", tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("start", "complaint"),
    [
        (b"\x1f\x8b\x08\x00", "packed with gzip"),
        (b"PK\x03\x04\x14", "zip or Excel"),
        (b"PAR1\x15", "kind: parquet"),
        ("\ufeffimage,label\n".encode("utf-16-le"), "UTF-16; save it as CSV UTF-8"),
        (b'{"image": "a.jpg"}\n', "kind: jsonl"),
        (b'[\n{"image": "a.jpg"}\n]', "one object a line"),
        (b"image;label\na.jpg;ct\n", "not separated by ',', but by ';'; set separator: \";\""),
        (b"image\tlabel\na.jpg\tct\n", r'set separator: "\\t"'),
    ],
)
def test_a_file_that_is_no_such_csv_is_told_for_what_it_is(tmp_path: Path, start: bytes, complaint: str) -> None:
    (tmp_path / "a.csv").write_bytes(start)
    with pytest.raises((ConfigError, DataError), match=complaint):
        read("csv", tmp_path / "a.csv")


def test_a_json_list_over_several_lines_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('[\n {"text": "a"},\n {"text": "b"}\n]\n')
    with pytest.raises(DataError, match="one JSON list; write one object a line"):
        read("jsonl", tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ("image, label", r"a column ' label', but label is read from 'label'.*columns\.label: ' label' \(or null"),
        ("image,Group_ID", r"columns\.group: 'Group_ID'"),
        ("Image,text", r"columns\.image: 'Image'\."),
    ],
)
def test_columns_that_are_spelt_almost_as_expected_are_not_lost(tmp_path: Path, header: str, complaint: str) -> None:
    (tmp_path / "a.csv").write_text(f"{header}\na.jpg,ct\n")
    with pytest.raises(ConfigError, match=complaint):
        read("csv", tmp_path / "a.csv")


def test_a_column_spelt_almost_as_expected_may_be_something_else(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,ID,Label,Split\na.jpg,7,ct,x\n")
    (case,), bad = read("csv", tmp_path / "a.csv", columns={"id": None, "label": "Label", "meta": ["Split"]})
    assert not bad
    assert (case.labels, case.split, case.meta) == (("ct",), None, {"Split": "x"})


def test_column_given_twice(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,label,image\na.jpg,ct,b.jpg\n")
    with pytest.raises(DataError, match="has the column 'image' twice"):
        read("csv", tmp_path / "a.csv")


def test_rows_of_one_image_share_a_group_that_no_inserted_row_changes(tmp_path: Path) -> None:
    def groups(*names: str) -> list[str]:
        (tmp_path / "a.csv").write_text("image,text\n" + "".join(f"{name},{name}\n" for name in names))
        return [case.group for case in read("csv", tmp_path / "a.csv")[0]]

    before, after = groups("a.jpg", "b.jpg", "a.jpg", "", "c.jpg"), groups("new.jpg", "a.jpg", "b.jpg", "a.jpg")
    assert before[0] == before[2] != before[1]
    assert before[:3] == after[1:]


def test_masks_and_their_files(tmp_path: Path) -> None:
    write_images(tmp_path, ["m.png"])
    (tmp_path / "a.csv").write_text("image,mask\na.jpg,m.png\nb.jpg,n.png\nc.jpg,\n")
    cases, bad = read("csv", tmp_path / "a.csv")
    path = tmp_path / "m.png"
    there = FileFacts(path.stat().st_size, path.stat().st_mtime_ns, is_file=True)
    assert [case.masks for case in cases] == [
        (Mask(str(path), file=there),), (Mask(str(tmp_path / "n.png")),), (),
    ]  # fmt: skip
    assert not bad


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("disc", [("", "", "d.png")]),
        (["disc", "cup_1"], [("disc", "", "d.png"), ("cup_1", "", "c.png")]),
        ({"optic disc": "disc", "cup": {"ann": "cup_1", "bob": "cup_2"}},
         [("optic disc", "", "d.png"), ("cup", "ann", "c.png")]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_masks_by_class_and_annotator(tmp_path: Path, kind: str, given: Any, expected: list[Any]) -> None:
    row = {"image": "a.jpg", "disc": "d.png", "cup_1": "c.png", "cup_2": "", "text": "x"}
    path = tmp_path / f"a.{kind}"
    if kind == "csv":
        path.write_text("\n".join([",".join(row), ",".join(row.values())]))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        write_jsonl(path, [row])
    (case,), _ = read(kind, path, columns={"mask": given})
    assert [(mask.name, mask.annotator, Path(mask.image).name) for mask in case.masks] == expected
    named = Columns(mask=given).names("mask")
    assert set(case.meta) == {"disc", "cup_1"} - set(named)
    with pytest.raises(ConfigError, match=r"columns\.mask is 'cup', which .* does not have"):
        read(kind, path, columns={"mask": ["disc", "cup"]})


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_several_texts(tmp_path: Path, kind: str) -> None:
    rows = [{"image": "a.jpg", "findings": "Drusen.", "impression": "AMD."},
            {"image": "b.jpg", "findings": "", "impression": "Healthy."},
            {"image": "c.jpg", "findings": "", "impression": ""}]  # fmt: skip
    path = tmp_path / f"a.{kind}"
    if kind == "csv":
        path.write_text("\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        write_jsonl(path, rows)
    cases, _ = read(kind, path, columns={"text": ["findings", "impression"]})
    assert [(case.text, case.texts, case.meta) for case in cases] == [
        ("Drusen.", (Text("Drusen.", "findings"), Text("AMD.", "impression")), {}),
        ("Healthy.", (Text("Healthy.", "impression"),), {}),
        (None, (), {}),
    ]


def test_tokens_of_several_texts_are_counted_together(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"image": ["a.png", "b.png"], "q": "<image> What?", "a": "<attachment>"}])
    (case,), _ = read("jsonl", path, columns={"text": ["q", "a"]})
    assert case.texts == (Text("What?", "q"),)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_list_is_several_texts(tmp_path: Path, kind: str) -> None:
    rows = [{"image": "a.jpg", "captions": [" one ", "two"], "more": "three"},
            {"image": "b.jpg", "captions": [], "more": None},
            {"image": "c.jpg", "captions": ["one", None, ""], "more": ""}]  # fmt: skip
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        write_jsonl(path, rows)
    for column, name in (("captions", ""), (["captions"], "captions"), (["captions", "more"], "captions")):
        cases, bad = read(kind, path, columns={"text": column, "meta": []})
        assert not bad
        more = (Text("three", "more"),) if "more" in column else ()
        assert [case.texts for case in cases] == [
            (Text("one", name), Text("two", name), *more), (), (Text("one", name),)
        ]  # fmt: skip
        assert [case.notes for case in cases] == [(), (), ("an empty text in a list of texts is left out",)]


def test_each_caption_of_a_list_may_name_the_image(tmp_path: Path) -> None:
    row = {"image": "a.png", "text": ["<image> A lung.", "Shown is <image> a lung."]}
    odd = {"image": "b.png", "text": ["<image> <image> A lung.", "A lung."]}
    cases, bad = read("jsonl", write_jsonl(tmp_path / "a.jsonl", [row, odd]))
    assert [[text.text for text in case.texts] for case in cases] == [["A lung.", "Shown is a lung."]]
    assert [row.reason for row in bad] == ["the text has 2 attachment tokens, the row 1 images"]


# ---------------------------------------------------------------- parquet


def test_parquet_paths_and_types(tmp_path: Path) -> None:
    table = pa.table({
        "img_path": ["a.jpg", None, "c.jpg"], "text": [None, "only text", ""], "label": [3.0, None, 4.0],
        "is_gt": [True, False, None], "split": pa.array(["TRAIN", "TEST", "UNL"]).dictionary_encode(),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    cases, bad = read("parquet", tmp_path / "a.parquet", columns={"image": "img_path"})
    assert not bad
    assert [case.labels for case in cases] == [("3",), (), ("4",)]
    assert [(case.split, case.is_gt, case.line) for case in cases] == [
        ("train", True, 1), ("test", False, 2), ("unlabelled", True, 3),
    ]  # fmt: skip


@pytest.mark.parametrize("several", [False, True])
def test_parquet_with_embedded_images(tmp_path: Path, several: bool) -> None:
    image = {"bytes": image_bytes(1), "path": "a.png"}
    cell = [image, {"bytes": image_bytes(2), "path": None}] if several else image
    pq.write_table(pa.table({"image": [cell, cell], "label": ["x", "y"]}), tmp_path / "a.parquet")
    cases, bad = read("parquet", tmp_path / "a.parquet")
    assert not bad
    assert [len(case.views) for case in cases] == [2, 2] if several else [1, 1]
    assert cases[0].views[0].data == image_bytes(1)
    assert cases[0].group == cases[1].group


def test_embedded_images_of_one_bare_name_are_not_one_group(tmp_path: Path) -> None:
    cells = [{"bytes": image_bytes(seed), "path": "image.png"} for seed in (1, 2, 1)]
    pq.write_table(pa.table({"image": cells, "id": ["a", "b", "c"]}), tmp_path / "a.parquet")
    cases, _ = read("parquet", tmp_path / "a.parquet")
    assert cases[0].group == cases[2].group != cases[1].group


def test_plain_binary_column_groups_by_content(tmp_path: Path) -> None:
    cells = [image_bytes(1), image_bytes(2), image_bytes(1)]
    pq.write_table(pa.table({"image": cells}), tmp_path / "a.parquet")
    cases, _ = read("parquet", tmp_path / "a.parquet")
    assert cases[0].group == cases[2].group != cases[1].group


def test_parquet_of_many_row_batches_counts_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [f"t{n}" for n in range(2500)]}), tmp_path / "a.parquet", row_group_size=700)
    cases, _ = read("parquet", tmp_path / "a.parquet")
    assert [case.line for case in cases] == list(range(1, 2501))


def test_file_that_is_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("image,label\n")
    with pytest.raises(DataError, match="no sound parquet file"):
        read("parquet", tmp_path / "a.parquet")
