"""Preparing: resumable, idle when nothing changed, and clear about every bad row."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from consilium.core.errors import BadRowsError, DataError, StoreError
from consilium.data.batches import workers
from consilium.data.config import DataConfig
from consilium.data.images import check as image_check
from consilium.data.store import parts
from consilium.data.store import prepare as module
from consilium.data.store.files import write_dataset_files
from consilium.data.store.prepare import prepare
from consilium.data.store.store import CaseTable, Store
from tests.data.samples import Bars, data_config, image_bytes, write_images, write_jsonl


def folder_config(root: Path, **sections: Any) -> DataConfig:
    return data_config(root, {"kind": "folder", "name": "s", "path": str(root / "images")}, **sections)


def contents(table: CaseTable) -> list[Any]:
    names = ("image", "bytes", "width", "height", "sha256")
    views = [table.view_column(name)[1] for name in names]
    return [table.ids, table.splits, table.labels, table.groups, table.metas, *views]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_ROWS", 8)
    monkeypatch.setattr(module, "BATCH", 4)
    monkeypatch.setattr(image_check, "AHEAD", 4)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that were read, in order."""
    seen: list[str] = []
    original = image_check.read_bytes

    def read(image: str | bytes) -> bytes:
        seen.append(os.path.basename(image) if isinstance(image, str) else "bytes")
        return original(image)

    monkeypatch.setattr(image_check, "read_bytes", read)
    return seen


def test_progress_and_summary(tmp_path: Path) -> None:
    write_images(tmp_path / "images", [f"train/ct/{n}.png" for n in range(5)] + ["test/mri/5.png", "test/mri/x.txt"])
    calls: list[tuple[int, int | None]] = []
    prepared = prepare(
        folder_config(tmp_path, split={"val": 0}), reporter=Bars(lambda done, total: calls.append((done, total)))
    )
    assert calls[-1] == (6, 6)
    assert prepared.created
    assert prepared.bad_rows == []
    assert prepared.summary == [
        {
            "source": "s",
            "train": 5,
            "val": 0,
            "test": 1,
            "unlabelled": 0,
            "labels": 2,
            "bad rows": 0,
            "skipped files": 1,
        }
    ]
    assert prepared.notes() == ["s: skipped 1 x .txt file"]
    assert prepared.store.manifest.counts == [
        {"source": "s", "split": "test", "label": "mri", "cases": 1},
        {"source": "s", "split": "train", "label": "ct", "cases": 5},
    ]


# ---------------------------------------------------------------- nothing changed, something changed


def test_nothing_changed_reads_no_image(tmp_path: Path, reads: list[str]) -> None:
    write_images(tmp_path / "images", ["ct/a.png", "mri/b.png"])
    first = prepare(folder_config(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in first.store.path.rglob("*")}
    reads.clear()
    again = prepare(folder_config(tmp_path, mixture={"sampling": "class_balanced"}, loader={"batch_size": 2}))
    assert (again.created, again.store.path, reads) == (False, first.store.path, [])
    assert {path: path.stat().st_mtime_ns for path in first.store.path.rglob("*")} == before
    assert again.summary == first.summary


@pytest.mark.parametrize("change", ["new image", "other image", "image gone", "seed", "label_levels", "embed"])
def test_a_change_makes_another_store_and_keeps_the_old_one(tmp_path: Path, change: str) -> None:
    write_images(tmp_path / "images", ["ct/a.png", "mri/b.png"])
    first = prepare(folder_config(tmp_path))
    sections: dict[str, Any] = {"seed": {"split": {"seed": 1}}, "embed": {"store": {"images": "embed"}}}.get(change, {})
    if change == "new image":
        write_images(tmp_path / "images", ["ct/c.png"], first_seed=9)
    elif change == "other image":
        write_images(tmp_path / "images", ["ct/a.png"], first_seed=9)
    elif change == "image gone":
        (tmp_path / "images/ct/a.png").unlink()
    config = folder_config(tmp_path, **sections)
    if change == "label_levels":
        source = {"kind": "folder", "name": "s", "path": str(tmp_path / "images"), "label_levels": 0}
        config = data_config(tmp_path, source)
    second = prepare(config)
    assert second.created
    assert second.store.path != first.store.path
    assert contents(Store.open(first.store.path).table)


@pytest.mark.parametrize("images", ["reference", "embed"])
def test_a_mask_that_a_table_points_to_changes(tmp_path: Path, images: str, reads: list[str]) -> None:
    write_images(tmp_path, ["a.png", "b.png", "m.png", "n.png"])
    path = write_jsonl(tmp_path / "a.jsonl", [{"image": "a.png", "mask": "m.png"}, {"image": "b.png", "mask": "n.png"}])
    source = {"kind": "jsonl", "name": "s", "path": str(path)}
    config = data_config(tmp_path, source, store={"images": images}, on_bad_row="quarantine")
    assert prepare(config).created
    assert sorted(reads) == ["a.png", "b.png"], "masks are not opened"
    assert not prepare(config).created
    write_images(tmp_path, ["n.png"], first_seed=7)
    changed = prepare(config)
    assert changed.created
    assert [size for _, size, _ in changed.store.table.mask_files()] == [
        (tmp_path / name).stat().st_size for name in ("m.png", "n.png")
    ]
    assert not prepare(config).created
    mask = (tmp_path / "m.png").read_bytes()
    (tmp_path / "m.png").unlink()
    gone = prepare(config)
    assert gone.created
    assert [row.reason for row in gone.bad_rows] == [f"the mask {tmp_path / 'm.png'} does not exist"]
    assert not prepare(config).created
    (tmp_path / "m.png").write_bytes(mask)
    back = prepare(config)
    assert (back.created, back.bad_rows, len(back.store.table)) == (True, [], 2)


def test_an_image_that_a_table_points_to_changes(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png", "b.png"])
    path = write_jsonl(tmp_path / "a.jsonl", [{"image": "a.png"}, {"image": "b.png"}])
    config = data_config(tmp_path, {"kind": "jsonl", "name": "s", "path": str(path)})
    old = prepare(config).store.table.view_column("sha256")[1]
    assert not prepare(config).created
    write_images(tmp_path, ["b.png"], first_seed=7)
    changed = prepare(config)
    new = changed.store.table.view_column("sha256")[1]
    assert changed.created
    assert (old[0] == new[0], old[1] == new[1]) == (True, False)
    assert not prepare(config).created
    assert [entry.name for entry in (tmp_path / "stores").iterdir() if not entry.name.startswith(".")] == [
        changed.store.path.name
    ]


# ---------------------------------------------------------------- kill and resume


def start(target: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """A process of its own, forked from one that has imported what it needs."""
    workers.warm_up()
    process = multiprocessing.get_context("forkserver").Process(target=target, args=arguments)
    process.start()
    return process


def _killed(when: int, root: Path) -> None:
    """Prepare in a process of its own, which dies: after so many cases, or while the part -``when`` is written."""
    parts.PART_ROWS, module.BATCH = 8, 4
    written, original = [], parts.atomic_file

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    @contextlib.contextmanager
    def atomic_file(path: Path) -> Iterator[Path]:
        written.append(path)
        with original(path) as temporary:
            yield temporary
            if len(written) == -when:
                die()

    def progress(done: int, total: int | None) -> None:
        if done == when:
            die()

    parts.atomic_file = atomic_file  # type: ignore[assignment]
    prepare(folder_config(root), reporter=Bars(progress))


def test_killed_at_any_time_it_goes_on_without_losing_or_repeating(
    tmp_path: Path, small_parts: None, reads: list[str]
) -> None:
    write_images(tmp_path / "images", [f"{label}/{n:02}.png" for label in "ab" for n in range(25)])
    unbroken = prepare(folder_config(tmp_path, store={"root": str(tmp_path / "unbroken")}))
    for when in (4, 20, -1, -2, 48):
        process = start(_killed, when, tmp_path)
        process.join(timeout=60)
        assert process.exitcode == -signal.SIGKILL
        (work,) = (tmp_path / "stores").glob("*.partial")
        with pytest.raises(StoreError):
            Store.open(work)
    finished = sum(1 for _ in work.glob("part-*.arrow"))
    assert finished == 6
    reads.clear()
    resumed = prepare(folder_config(tmp_path))
    assert len(reads) == 50 - 8 * finished
    assert contents(resumed.store.table) == contents(unbroken.store.table)
    assert sorted(path.name for path in resumed.store.path.iterdir()) == sorted(
        path.name for path in unbroken.store.path.iterdir()
    )
    assert not list((tmp_path / "stores").glob("*.partial"))


@pytest.mark.parametrize("stop", [4, 8, 12, 28])
def test_interrupted_with_bad_images_it_still_reports_all(tmp_path: Path, small_parts: None, stop: int) -> None:
    write_images(tmp_path / "images", [f"a/{n:02}.png" for n in range(30)])
    bad = ["03.png", "11.png", "29.png"]
    for name in bad:
        (tmp_path / "images/a" / name).write_text("no image")
    config = folder_config(tmp_path, on_bad_row="quarantine")

    def interrupt(done: int, total: int | None) -> None:
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(config, reporter=Bars(interrupt))
    prepared = prepare(config)
    assert [os.path.basename(row.file) for row in prepared.bad_rows] == bad
    assert len(prepared.store.table) == 27
    assert not list(prepared.store.path.glob("part-*.json"))


# ---------------------------------------------------------------- bad rows


@pytest.fixture
def mixed_rows(tmp_path: Path) -> DataConfig:
    """A jsonl with one good row among bad ones of every kind that only the images show."""
    write_images(tmp_path, ["good.png"])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("this is no image")
    (tmp_path / "cut.png").write_bytes(image_bytes(3, size=(60, 60))[:900])
    (tmp_path / "cut.jpg").write_bytes(image_bytes(3, size=(60, 60), format="JPEG")[:900])
    (tmp_path / "folder.jpg").mkdir()
    Image.new("1", (20_000, 10_000)).save(tmp_path / "huge.png")
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(2**40)
    names = ["good.png", "empty.jpg", "text.jpg", "cut.png", "cut.jpg", "folder.jpg", "huge.png", "sparse.jpg",
             "/dev/zero", "gone.jpg", "x" * 300 + ".jpg"]  # fmt: skip
    rows: list[dict[str, Any] | str] = [{"image": name, "label": "a"} for name in names]
    path = write_jsonl(tmp_path / "a.jsonl", [*rows[:4], "{broken", *rows[4:]])
    return data_config(tmp_path, {"kind": "jsonl", "name": "s", "path": str(path)})


REASONS = {
    2: "empty", 3: "text.jpg", 4: "cut.png", 5: "not valid JSON", 6: "cut.jpg", 7: "folder", 8: "huge.png",
    9: "1,099,511,627,776 bytes", 10: "device", 11: "does not exist", 12: "cannot be read",
}  # fmt: skip


def test_bad_rows_stop_with_a_summary_of_all(tmp_path: Path, mixed_rows: DataConfig) -> None:
    with pytest.raises(BadRowsError) as caught:
        prepare(mixed_rows)
    message = str(caught.value)
    assert message.startswith("11 rows are bad:")
    for line in REASONS:
        assert f"a.jsonl:{line}: " in message
    assert "data.on_bad_row: quarantine" in message
    (listing,) = (tmp_path / "stores").glob("*/quarantine.csv")
    assert str(listing) in message
    with listing.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {int(row["line"]): REASONS[int(row["line"])] in row["reason"] for row in rows} == dict.fromkeys(
        REASONS, True
    )
    going_on = prepare(mixed_rows.model_copy(update={"on_bad_row": "quarantine"}))
    assert not going_on.created  # every image was looked at before it stopped
    assert listing.parent == going_on.store.path


def test_bad_rows_in_quarantine(mixed_rows: DataConfig, tmp_path: Path) -> None:
    prepared = prepare(mixed_rows.model_copy(update={"on_bad_row": "quarantine"}))
    assert prepared.store.table.ids == ["s:1"]
    assert [row.line for row in prepared.bad_rows] == list(REASONS)
    assert prepared.summary[0]["bad rows"] == 11
    assert (prepared.store.path / "quarantine.csv").read_text().startswith("source,file,line,reason\n")

    again = prepare(mixed_rows.model_copy(update={"on_bad_row": "quarantine"}))
    assert (again.created, again.bad_rows) == (False, prepared.bad_rows)
    with pytest.raises(BadRowsError, match="11 rows are bad"):  # the store is there, but stop still stops
        prepare(mixed_rows)

    write_images(tmp_path, ["gone.jpg"], first_seed=5)  # mended: only the images changed
    mended = prepare(mixed_rows.model_copy(update={"on_bad_row": "quarantine"}))
    assert mended.created
    assert len(mended.bad_rows) == 10


def test_bad_rows_of_one_kind_are_one_line(tmp_path: Path) -> None:
    names = [f"my scans/{number}.png" for number in range(25)]
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "good"}, "{", *({"image": name} for name in names)])
    with pytest.raises(BadRowsError) as caught:
        prepare(data_config(tmp_path, {"kind": "jsonl", "name": "s", "path": str(path)}))
    head, broken, missing, _, listed = str(caught.value).splitlines()
    assert head == "26 rows are bad:"
    assert broken.startswith(f"  - {path}:2: ")
    first = ", ".join(f"{path}:{number + 3} ({tmp_path / names[number]})" for number in range(3))
    what = f"a file in {tmp_path / 'my scans'} does not exist; correct the path, or leave the row out"
    assert missing == f"  - 25 rows: {what} - first: {first}"
    (listing,) = (tmp_path / "stores").glob("*/quarantine.csv")
    assert str(listing) in listed
    with listing.open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 26


def test_what_bad_rows_of_one_kind_share_stays_named(tmp_path: Path) -> None:
    write_images(tmp_path / "images", [f"ct/{number}.png" for number in range(5)])
    with pytest.raises(BadRowsError, match=r"10 x 12 = 120 pixels, more than max_pixels: 100;? .* - first: .*0\.png, "):
        prepare(folder_config(tmp_path, store={"max_pixels": 100}))


@pytest.mark.parametrize(
    ("folder", "good", "hint"),
    [
        ("scans/", [], "No image of source 's' was found: relative paths are looked for in {}, which is the folder of"),
        ("scans\\", [], "Source 's' has paths with a backslash: write them with '/'"),
        ("scans/", [{"text": "good"}], "Source 's': relative paths are looked for in {}, which is the folder of the"),
    ],
)
def test_a_common_cause_of_missing_images_is_named(
    tmp_path: Path, folder: str, good: list[dict[str, Any]], hint: str
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*good, *({"image": f"{folder}{n}.png"} for n in range(5))])
    with pytest.raises(BadRowsError) as caught:
        prepare(data_config(tmp_path, {"kind": "jsonl", "name": "s", "path": str(path)}))
    assert hint.format(tmp_path) in str(caught.value)


def test_nothing_but_bad_rows_is_an_error_in_quarantine_too(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["{"])
    with pytest.raises(BadRowsError, match="1 row is bad"):
        prepare(data_config(tmp_path, {"kind": "jsonl", "name": "s", "path": str(path)}, on_bad_row="quarantine"))


# ---------------------------------------------------------------- writing


@pytest.fixture
def no_large_files() -> Iterator[None]:
    """Writing more than 64 KiB to a file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_leaves_the_previous_store(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    write_images(tmp_path, ["a.png"])
    path = write_jsonl(tmp_path / "a.jsonl", [{"image": "a.png"}])
    config = data_config(tmp_path, {"kind": "jsonl", "name": "s", "path": str(path)}, store={"images": "embed"})
    previous = prepare(config).store
    (tmp_path / "a.png").write_bytes(image_bytes(1, size=(200, 200)))
    request.getfixturevalue("no_large_files")
    with pytest.raises(StoreError, match=r"could not be written.*Free space"):
        prepare(config)
    assert Store.open(previous.path).table.sizes.tolist() == [[10, 12]]


def test_full_disk_then_space_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_parts: None, reads: list[str]
) -> None:
    write_images(tmp_path / "images", [f"a/{n:02}.png" for n in range(20)])
    original, written = parts.atomic_file, []

    def atomic_file(path: Path) -> Any:
        written.append(path)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        return original(path)

    monkeypatch.setattr(parts, "atomic_file", atomic_file)
    with pytest.raises(StoreError, match="No space left"):
        prepare(folder_config(tmp_path))
    reads.clear()
    assert len(prepare(folder_config(tmp_path)).store.table) == 20
    assert len(reads) == 12


def test_store_root_that_is_a_file(tmp_path: Path) -> None:
    write_images(tmp_path / "images", ["a/1.png"])
    (tmp_path / "stores").write_text("")
    with pytest.raises(StoreError, match=r"correct data\.store\.root"):
        prepare(folder_config(tmp_path))


def _exit_with_created(root: Path) -> None:
    sys.exit(prepare(folder_config(root)).created)


def test_two_processes_prepare_it_once(tmp_path: Path) -> None:
    write_images(tmp_path / "images", [f"a/{n:02}.png" for n in range(40)])
    both = [start(_exit_with_created, tmp_path) for _ in range(2)]
    for process in both:
        process.join(timeout=60)
    assert sorted(process.exitcode or 0 for process in both) == [False, True]


# ---------------------------------------------------------------- embedded images of a table


def embedded_table(tmp_path: Path) -> dict[str, str]:
    images = [{"bytes": image_bytes(n), "path": f"{n}.png"} for n in range(3)] + [
        {"bytes": b"no image", "path": "x.png"}
    ]
    pq.write_table(pa.table({"image": images, "label": ["a", "b", "a", "b"]}), tmp_path / "a.parquet")
    return {"kind": "parquet", "name": "s", "path": str(tmp_path / "a.parquet")}


def test_embedded_images_need_an_embedding_store(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds the images themselves.*set data\.store\.images: embed"):
        prepare(data_config(tmp_path, embedded_table(tmp_path)))
    prepared = prepare(
        data_config(tmp_path, embedded_table(tmp_path), store={"images": "embed"}, on_bad_row="quarantine")
    )
    assert [prepared.store.table.images(row) for row in range(3)] == [[image_bytes(n)] for n in range(3)]
    assert [row.line for row in prepared.bad_rows] == [4]


def test_large_embedded_images_make_many_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", 5 * len(image_bytes()))
    write_images(tmp_path / "images", [f"a/{n:02}.png" for n in range(12)])
    prepared = prepare(folder_config(tmp_path, store={"images": "embed"}))
    assert len(list(prepared.store.path.glob("part-*.arrow"))) == 3
    table = prepared.store.table
    assert [table.images(row)[0] for row in range(12)] == [
        (tmp_path / f"images/a/{n:02}.png").read_bytes() for n in range(12)
    ]


# ---------------------------------------------------------------- size


@pytest.mark.slow
def test_a_store_of_a_million_rows_opens_at_once(tmp_path: Path) -> None:
    rows, copies = 20_000, 50
    with (tmp_path / "a.csv").open("w") as file:
        file.write("text,label,group_id\n")
        file.writelines(f"finding {n},label{n % 7},p{n // 3}\n" for n in range(rows))
    store = prepare(data_config(tmp_path, {"kind": "csv", "name": "s", "path": str(tmp_path / "a.csv")})).store
    names = [path.name for path in sorted(store.path.glob("part-*.arrow"))]
    for name in names:
        for copy in range(copies):
            shutil.copy(store.path / name, store.path / f"{copy}-{name}")
    manifest = dataclasses.replace(store.manifest, cases=rows * copies)
    data_files = [f"{copy}-{name}" for copy in range(copies) for name in names]
    write_dataset_files(store.path, data_files=data_files, manifest=manifest)
    script = (
        "import sys, time; import pyarrow; from consilium.data.store.store import Store; "
        "own = lambda: int(next(l for l in open('/proc/self/status') if l.startswith('RssAnon')).split()[1]) / 1024; "
        "before, start = own(), time.perf_counter(); t = Store.open(sys.argv[1]).table; n = len(t); t.images(n - 1); "
        "print(n, time.perf_counter() - start, own() - before)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(store.path)], capture_output=True, text=True, check=True)
    count, seconds, megabytes = map(float, done.stdout.split())
    assert count == 1_000_000
    assert seconds < 1
    assert megabytes < 200
