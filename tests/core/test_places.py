"""Addresses and paths alike, and errors that say what to do; the buckets themselves are tested in test_buckets.py."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from consilium.core import places
from consilium.core.errors import ConfigError, MissingExtraError
from consilium.core.places import absolute, facts, is_bucket, is_remote, join, open_binary, parent, read_bytes
from consilium.core.transfer import fetch


@pytest.mark.parametrize("scheme", ["gs", "gcs", "s3", "hf"])
def test_addresses_are_put_together_like_paths(scheme: str) -> None:
    root = f"{scheme}://bucket/a"
    assert is_remote(root)
    assert is_bucket(root)
    assert absolute(root + "/") == root
    assert join(root, "b/c.jpg") == f"{root}/b/c.jpg"
    assert join(root, "../c.jpg") == f"{scheme}://bucket/c.jpg"
    assert join(root, "gs://other/c.jpg") == "gs://other/c.jpg"
    assert parent(f"{root}/c.jpg") == root


def test_paths_of_this_machine(tmp_path: Path) -> None:
    assert not is_remote("/a/b")
    assert not is_bucket("http://host/a")
    assert join("/a", "b/../c") == "/a/c"
    assert join("/a", "/b") == "/b"
    (tmp_path / "f").write_bytes(b"one")
    assert read_bytes(str(tmp_path / "f")) == b"one"
    with open_binary(str(tmp_path / "f")) as stream:
        assert stream.read() == b"one"
    assert facts(str(tmp_path / "none")) is None
    assert facts("a\0b") is None
    assert fetch(tmp_path / "f") == tmp_path / "f"


def test_each_scheme_has_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec.config

    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})  # else it looks for Google's machines
    found = {name: type(places.filesystem(f"{name}://b/x")).__name__ for name in ("gs", "s3", "hf")}
    assert found == {"gs": "GCSFileSystem", "s3": "S3FileSystem", "hf": "HfFileSystem"}
    with pytest.raises(OSError, match=r"http://a/b is an address of a kind that is not read; expected gs://, gcs://"):
        places.filesystem("http://a/b")


@pytest.mark.parametrize(("scheme", "library"), [("gs", "gcsfs"), ("s3", "s3fs")])
def test_a_missing_library_names_its_extra(scheme: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def missing(*_: object, **__: object) -> None:
        raise ImportError(f"Install {library} to access it")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(MissingExtraError, match=rf"Reading {scheme}:// needs the extra 'cloud'.*consilium\[cloud\]"):
        facts(f"{scheme}://bucket/file")


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("gs://b/x", "gcloud auth application-default login"),
        ("gcs://b/x", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("s3://b/x", "aws configure"),
        ("hf://datasets/a/b/x", "HF_TOKEN"),
    ],
)
@pytest.mark.parametrize("error", [PermissionError("Forbidden"), RuntimeError("Anonymous caller, 401"), TimeoutError()])
def test_what_a_bucket_refuses_says_what_to_do(
    address: str, advice: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> Any:
        raise error

    calls = SimpleNamespace(info=refuse, ls=refuse, find=refuse, cat_file=refuse, open=refuse, glob=refuse)
    monkeypatch.setattr(places, "filesystem", lambda _: calls)
    asked = (facts, read_bytes, places.find, places.names_in, places.matches, fetch)
    for ask in (*asked, lambda path: open_binary(path).__enter__()):
        with pytest.raises(OSError, match=f"cannot be reached .{type(error).__name__}") as told:
            ask(address)
        assert str(told.value).startswith(address)
        assert advice in str(told.value)


def test_the_hub_is_asked_through_its_own_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = places.filesystem("hf://datasets/a/b")
    file = {"name": "datasets/a/b/x.csv", "size": 3, "type": "file", "blob_id": "1", "last_commit": None}
    monkeypatch.setattr(type(hub), "info", lambda *_, **__: file)
    monkeypatch.setattr(type(hub), "ls", lambda *_, **__: [file])
    monkeypatch.setattr(type(hub), "find", lambda *_, **__: {file["name"]: file})
    monkeypatch.setattr(type(hub), "get_file", lambda _, __, target, **___: Path(target).write_bytes(b"one"))
    monkeypatch.setenv("CONSILIUM_CACHE", str(tmp_path))
    known = facts("hf://datasets/a/b/x.csv")
    assert places.find("hf://datasets/a/b") == {"x.csv": known}
    assert places.facts_of(["hf://datasets/a/b/x.csv"]) == [known]
    assert fetch("hf://datasets/a/b/x.csv").read_bytes() == b"one"


def test_a_download_cut_short_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from consilium.core import transfer

    calls = SimpleNamespace(
        info=lambda *_: {"size": 9, "type": "file", "etag": "1"},
        get_file=lambda _, target: Path(target).write_bytes(b"one"),
    )
    for module in (places, transfer):
        monkeypatch.setattr(module, "filesystem", lambda _: calls)
    monkeypatch.setattr(transfer, "WAITS", (0.0,))
    monkeypatch.setenv("CONSILIUM_CACHE", str(tmp_path))
    with pytest.raises(OSError, match="gs://b/x came with 3 of its 9 bytes"):
        fetch("gs://b/x")
    assert not [path for path in tmp_path.iterdir() if not path.name.endswith(".lock")]


class _AnswerError(Exception):
    """An error of a library that carries a status of HTTP."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.code = status


class NoCredentialsError(Exception):
    """Named like the one of the library of s3."""


@pytest.mark.parametrize(
    ("error", "kind", "tries"),
    [
        (PermissionError("Access Denied"), PermissionError, 1),
        (OSError("Forbidden: b/x"), PermissionError, 1),
        (_AnswerError(401), PermissionError, 1),
        (NoCredentialsError("Unable to locate credentials"), PermissionError, 1),
        (FileNotFoundError("no such bucket"), FileNotFoundError, 1),
        (_AnswerError(404), FileNotFoundError, 1),
        (_AnswerError(503), OSError, 3),
        (ConnectionError("lost"), OSError, 3),
    ],
    ids=repr,
)
def test_what_cannot_pass_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[OSError], tries: int
) -> None:
    from consilium.core import transfer

    asked: list[str] = []

    def put_file(_: str, address: str) -> None:
        asked.append(address)
        raise error

    monkeypatch.setattr(transfer, "filesystem", lambda _: SimpleNamespace(put_file=put_file))
    monkeypatch.setattr(transfer, "WAITS", (0.0, 0.0))
    with pytest.raises(OSError, match="gs://b/x") as failed:
        transfer.send(tmp_path / "x", "gs://b/x")
    assert type(failed.value) is kind
    assert len(asked) == tries


@pytest.mark.parametrize("value", ["runs", "/mnt/bucket", "ftp://a/b", "gs://"])
def test_a_copy_goes_to_a_bucket(value: str) -> None:
    from consilium.core.config import build
    from consilium.training.config import OutputConfig

    with pytest.raises(ConfigError, match="copy_to"):
        build(OutputConfig, {"copy_to": value}, origin="x")
    assert build(OutputConfig, {"copy_to": "s3://b/runs"}, origin="x").copy_to == "s3://b/runs"


def test_a_remote_file_that_could_not_be_opened_is_closed_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_: str) -> Any:
        raise FileNotFoundError

    ignored: list[object] = []
    monkeypatch.setattr(places, "filesystem", nothing)
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    with pytest.raises(FileNotFoundError), open_binary("s3://bucket/file"):
        pass
    gc.collect()
    assert not ignored
