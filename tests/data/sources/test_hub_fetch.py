"""Fetching from a hub: over HTTP, from a stand-in that counts, refuses, breaks and is killed in the middle."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import HfHubHTTPError

from consilium.core.errors import DataError
from consilium.core.reporter import Silent
from consilium.data.sources.config import HubDataset
from consilium.data.sources.hub_patience import Patience
from consilium.data.store.prepare import prepare
from tests.data.samples import data_config
from tests.data.sources.fake_hub import DATASET, FakeHub, serving
from tests.data.sources.hubs import finish, rows_of, start, store_rows, write_parquet

SOURCE: dict[str, Any] = {"kind": "hub", "path": DATASET, "columns": {"group": "patient"}}
SPLITS = {"train": 90, "validation": 20, "test": 10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet(tmp_path_factory.mktemp("hub"), SPLITS, size=(60, 60))


@pytest.fixture(scope="module")
def unbroken(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The rows of the store that a preparation leaves that nothing disturbs: those of a local copy."""
    return offline(tmp_path_factory.mktemp("unbroken"), path=str(folder))


def offline(root: Path, *, path: str = DATASET, **sections: Any) -> list[Any]:
    """The rows of a preparation in this process, which is offline."""
    config = data_config(root, {"name": "s", **SOURCE, "path": path}, store={"images": "embed"}, **sections)
    return rows_of(prepare(config).store)


def test_a_dataset_is_fetched_once_and_then_read_offline(folder: Path, unbroken: list[Any], tmp_path: Path) -> None:
    with serving(FakeHub(folder, token="hf_right")) as hub:
        code, printed = finish(hub.url, tmp_path, SOURCE)
    assert code == 0, printed
    assert store_rows(printed) == unbroken
    assert "(fetch 120/120)" in printed
    assert "train 90, validation 20, test 10" in printed
    assert not [name for name in hub.requests if name.startswith("unauthorised")]
    assert len(offline(tmp_path, split={"seed": 1})) == 120, "another store, of the same rows"


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_store(folder: Path, unbroken: list[Any], tmp_path: Path) -> None:
    """SIGKILL at a moment that differs each time, in the fetching or in what follows it."""
    with serving(FakeHub(folder)) as hub:
        kills = 0
        for number in (4, 9, 13, 18, 23):  # the request that is never answered
            process = start(hub.url, tmp_path, SOURCE)
            wanted = hub.requests["file"] + number

            def kill(asked: int, *, pid: int = process.pid, wanted: int = wanted) -> None:
                if asked == wanted:
                    os.kill(pid, signal.SIGKILL)

            hub.fault = kill
            process.communicate(timeout=120)
            kills += process.returncode == -signal.SIGKILL
        kept = sum(1 for _ in tmp_path.glob("stores/hub-*/*/part-*"))
        hub.fault = lambda number: None
        code, printed = finish(hub.url, tmp_path, SOURCE)
    assert kills >= 3, "the kills came too late"
    assert kept, "nothing was kept by the processes that were killed"
    assert code == 0, printed
    assert store_rows(printed) == unbroken
    assert len(list(tmp_path.glob("stores/hub-*"))) == 1


@pytest.mark.slow
def test_killed_at_any_time_it_ends_with_the_same_store(folder: Path, unbroken: list[Any], tmp_path: Path) -> None:
    with serving(FakeHub(folder)) as hub:
        for parts in (1, 3, 5):
            process = start(hub.url, tmp_path, SOURCE)
            while process.poll() is None and sum(1 for _ in tmp_path.glob("stores/hub-*/*/part-*")) < parts:
                time.sleep(0.002)
            process.kill()
            process.communicate()
        code, printed = finish(hub.url, tmp_path, SOURCE)
    assert code == 0, printed
    assert store_rows(printed) == unbroken


@pytest.mark.slow
def test_what_is_there_is_not_downloaded_again(tmp_path: Path) -> None:
    """Of one file of eight row groups some are there when the connection is lost; the others are fetched later."""
    folder = write_parquet(tmp_path / "hub", {"train": 80}, files=1, group=10, size=(128, 128))
    (path,) = folder.rglob("*.parquet")
    metadata = pq.read_metadata(path)
    begins = [metadata.row_group(n).column(0).data_page_offset for n in range(metadata.num_row_groups)]
    with serving(FakeHub(folder, fault=lambda number: 404 if number > 13 else None)) as hub:
        code, printed = finish(hub.url, tmp_path, SOURCE)
        assert code == 2, printed
        kept = max(int(part.stem[-9:]) for part in tmp_path.glob("stores/hub-*/train/part-*"))
        hub.fault = lambda number: None
        hub.starts.clear()
        code, printed = finish(hub.url, tmp_path, SOURCE)
    assert code == 0, printed
    assert len(store_rows(printed)) == 80
    assert kept >= 40
    # `datasets` reads the last row group that was handed over once more, and the one before it.
    assert min(hub.starts) >= begins[kept // 10 - 2] - 1000


@pytest.mark.slow
def test_rate_limits_errors_and_lost_connections_are_waited_out(
    folder: Path, unbroken: list[Any], tmp_path: Path
) -> None:
    faults: dict[int, int | str] = {2: 429, 5: 500, 8: "drop", 12: 503, 15: "drop"}
    with serving(FakeHub(folder, fault=faults.get)) as hub:
        code, printed = finish(hub.url, tmp_path, SOURCE)
    assert code == 0, printed
    assert store_rows(printed) == unbroken
    assert f"{DATASET}: Rate limited. Waiting 1.0s" in printed, printed


@pytest.mark.slow
def test_a_hub_that_stays_limited_ends_with_advice_and_keeps_what_came(
    folder: Path, unbroken: list[Any], tmp_path: Path
) -> None:
    with serving(FakeHub(folder, fault=lambda number: 429 if number > 8 else None)) as hub:
        code, printed = finish(hub.url, tmp_path, {**SOURCE, "retries": 1})
        assert code == 2
        assert f"{DATASET}: rate limited, waiting 0 s (try 1 of 1)" in printed, printed
        assert "rate limited, 2 times running. What was fetched is kept" in printed
        assert list(tmp_path.glob("stores/hub-*/train/part-*"))
        hub.fault = lambda number: None
        code, printed = finish(hub.url, tmp_path, SOURCE)
    assert code == 0, printed
    assert store_rows(printed) == unbroken


@pytest.mark.slow
def test_a_resume_stays_with_the_commit_it_began_with(folder: Path, tmp_path: Path) -> None:
    with serving(FakeHub(folder, fault=lambda number: 404 if number > 8 else None)) as hub:
        assert finish(hub.url, tmp_path, SOURCE)[0] == 2
        hub.commit, hub.fault = "f" * 40, lambda number: None
        code, printed = finish(hub.url, tmp_path, SOURCE)  # the old commit is gone from this hub
        assert code == 2
        assert f"{DATASET} is not on the hub (404)" in printed, printed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hub_keys", "message"),
    [
        ({"token": "hf_other"}, "the hub refuses access (401)"),
        ({"info_status": 403}, "ask for access on its page and set HF_TOKEN"),
        ({"info_status": 404}, "is not on the hub (404)"),
    ],
)
def test_refusals_say_what_to_do_at_once(folder: Path, tmp_path: Path, hub_keys: dict[str, Any], message: str) -> None:
    with serving(FakeHub(folder, **hub_keys)) as hub:
        code, printed = finish(hub.url, tmp_path, SOURCE)
    assert code == 2
    assert message in printed, printed
    assert "waiting" not in printed
    assert "Traceback" not in printed


@pytest.mark.slow
def test_images_that_would_have_to_be_embedded_are_told_before_they_come(folder: Path, tmp_path: Path) -> None:
    with serving(FakeHub(folder)) as hub:
        code, printed = finish(hub.url, tmp_path, SOURCE, store={"images": "reference"})
    assert code == 2
    assert "set data.store.images: embed" in printed
    assert not list(tmp_path.glob("stores/hub-*/*/part-*"))


@pytest.mark.slow
def test_no_hub_at_all(tmp_path: Path) -> None:
    code, printed = finish("http://127.0.0.1:9", tmp_path, SOURCE)
    assert code == 2
    assert "no connection to the hub" in printed, printed
    assert "2 times running, and nothing of it is here. Connect this machine to the network" in printed


def test_only_a_hub_that_never_answered_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    dataset, reporter = HubDataset(path=DATASET, retries=5), Silent()

    def waits_until_given_up(patience: Patience, *first: Exception) -> int:
        def fail() -> None:
            for error in (*first, *[ConnectionError("no route")] * 9):
                patience.wait(error)

        waits.clear()
        with pytest.raises(DataError) as given_up:
            fail()
        assert ("Connect this machine" in str(given_up.value)) == (not patience.reached)
        return len(waits)

    answer: Any = SimpleNamespace(status_code=503, headers={}, request=None)
    busy = HfHubHTTPError("busy", response=answer)
    assert waits_until_given_up(Patience(dataset, reporter, reached=False)) == 1
    assert waits_until_given_up(Patience(dataset, reporter, reached=False), busy) == 5
    assert waits_until_given_up(Patience(dataset, reporter)) == 5
    none = HubDataset(path=DATASET, retries=0)
    assert waits_until_given_up(Patience(none, reporter, reached=False)) == 0
