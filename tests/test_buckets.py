"""Buckets, against a real server that speaks Google's protocol: prepare, train, predict, bundles and copies."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
from safetensors.torch import load_file

pytest.importorskip("gcp_storage_emulator")
pytest.importorskip("gcsfs")

import consilium
from consilium.core import places, transfer
from consilium.core.config import build
from consilium.core.errors import BundleError, ConfigError, DataError, RunFolderError, TrainingError, WeightsError
from consilium.core.places import facts, facts_of, find, open_binary, read_bytes
from consilium.core.transfer import fetch
from consilium.data.config import DataConfig
from consilium.data.store.prepare import prepare
from consilium.experiment import Experiment
from tests.cli.conftest import Cli, cli
from tests.conftest import write_images
from tests.data.cases.harmonised import rows_of, write_dataset
from tests.tasks.test_fuse_contract import TREE
from tests.tiny import Run, TrainTiny, same, tiny_experiment

__all__ = ["cli"]


# As it comes it answers one connection after the other, and an idle one holds up all others.
EMULATOR = """
from http import server
server.HTTPServer = server.ThreadingHTTPServer
from gcp_storage_emulator.__main__ import main
main()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    """A storage server of its own, and gcsfs told to use it."""
    import fsspec.config

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", EMULATOR, "start", "--host=127.0.0.1", f"--port={port}", "--in-memory"]
    process = subprocess.Popen(
        [*command, "--default-bucket=clinic"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    options = {"endpoint_url": f"http://127.0.0.1:{port}", "token": "anon"}
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        with patch.dict(fsspec.config.conf, {"gs": options}):
            yield
    finally:
        process.terminate()
        process.wait(timeout=10)


@pytest.fixture
def bucket(server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty folder of the bucket; downloads go to the test's own cache."""
    monkeypatch.setenv("CONSILIUM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(transfer, "WAITS", (0.0, 0.0))
    return f"gs://clinic/{tmp_path.name}"


def upload(folder: Path, address: str) -> None:
    filesystem = places.filesystem(address)
    for path in folder.rglob("*"):
        if path.is_file():
            filesystem.put_file(str(path), f"{address}/{path.relative_to(folder).as_posix()}")


def write(address: str, data: bytes) -> None:
    places.filesystem(address).pipe_file(address, data)


def table(bucket: str, images: Path) -> bytes:
    """A csv in the bucket of images there: paths beside it, and one address."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["image", "label", "split", "mask"])
    names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.jpg"))
    for number, name in enumerate(names):
        split, label, _ = name.split("/")
        image = f"images/{name}" if number else f"{bucket}/images/{name}"
        writer.writerow([image, label, split, "images/" + names[0] if number == 1 else ""])
    return text.getvalue().encode()


def experiment_on(bucket: str, tmp_path: Path, kind: str = "folder", *overrides: str) -> consilium.Experiment:
    path = f"{bucket}/images" if kind == "folder" else f"{bucket}/cases.csv"
    places_here = [f"data.store.root={tmp_path / 'stores'}", f"data.sources.0.path={path}"]
    return tiny_experiment(tmp_path, tmp_path / "runs", *places_here, f"data.sources.0.kind={kind}", *overrides)


def test_a_file_is_what_it_is_now(bucket: str) -> None:
    place = f"{bucket}/a.txt"
    assert facts(place) is None
    write(place, b"one")
    before = facts(place)
    assert before is not None
    assert (before.size, before.is_file) == (3, True)
    assert facts_of([place, f"{bucket}/none", f"{bucket}/nowhere/none"]) == [before, None, None]
    assert find(bucket) == {"a.txt": before}
    write(place, b"two")
    assert facts(place) != before
    assert find(bucket) != {"a.txt": before}
    folder = facts(bucket)
    assert folder is not None
    assert not folder.is_file


def test_streams_are_read_line_by_line_and_sought(bucket: str) -> None:
    write(f"{bucket}/a.txt", b"one\ntwo\n" * 1000)
    with open_binary(f"{bucket}/a.txt") as stream:
        assert next(stream) == b"one\n"
        stream.seek(-4, io.SEEK_END)
        assert stream.read() == b"two\n"
    for read in (read_bytes, fetch, lambda path: open_binary(path).__enter__()):
        with pytest.raises(FileNotFoundError, match=f"{bucket}/none does not exist, or this machine may not see it"):
            read(f"{bucket}/none")
    with open_binary(f"{bucket}/a.txt"), pytest.raises(DataError, match="mine"):
        raise DataError("mine")  # what the reader's own code raises is not the bucket's


@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_a_store_from_a_bucket(bucket: str, tiny_images: Path, tmp_path: Path, kind: str) -> None:
    upload(tiny_images, f"{bucket}/images")
    write(f"{bucket}/cases.csv", table(bucket, tiny_images))
    config = experiment_on(bucket, tmp_path, kind).data
    first = prepare(config)
    assert first.created
    assert first.store.manifest.cases == 48
    here = prepare(tiny_experiment(tiny_images, tmp_path / "runs").data)
    assert first.store.manifest.splits["images"] == here.store.manifest.splits["images"]
    with patch.object(places, "facts", wraps=facts) as asked:
        assert not prepare(config).created
        assert asked.call_count <= 2, "of an unchanged store each folder is listed, and no image asked for alone"
    other = next(tiny_images.rglob("*.jpg"))
    write(f"{bucket}/images/train/ct/000.jpg", other.read_bytes() + b"\0")
    assert prepare(config).created


def test_a_bad_image_and_a_missing_mask_are_bad_rows(bucket: str, tiny_images: Path, tmp_path: Path) -> None:
    write(f"{bucket}/images/a.jpg", next(tiny_images.rglob("*.jpg")).read_bytes())
    rows = "image,label,mask\nimages/a.jpg,ct,\nimages/none.jpg,ct,\nimages/a.jpg,ct,images/no.png\n"
    write(f"{bucket}/cases.csv", rows.encode())
    with pytest.raises(DataError) as error:
        prepare(experiment_on(bucket, tmp_path, "csv").data)
    assert f"{bucket}/images/none.jpg does not exist" in str(error.value)
    assert f"the mask {bucket}/images/no.png does not exist" in str(error.value)
    assert "2 rows are bad" in str(error.value)


@pytest.mark.slow
def test_training_straight_from_the_bucket_is_training_on_the_same_files(
    bucket: str, tiny: TrainTiny, tiny_images: Path, tiny_run: Run, tmp_path: Path, cli: Cli
) -> None:
    upload(tiny_images, f"{bucket}/images")
    write(f"{bucket}/tiny.yaml", consilium_yaml(experiment_on(bucket, tmp_path)).encode())
    copy = f"output.copy_to={bucket}/done"
    answer = cli("train", f"{bucket}/tiny.yaml", "data.loader.workers=2", copy)
    assert answer.code == 0, answer.err
    run = Path(answer.out.rpartition("finished: ")[2].strip())
    from safetensors.torch import load_file

    assert same(load_file(run / "model.safetensors"), tiny_run.weights)
    # The copy holds the bundle and the report, and is a bundle like the one here.
    there = f"{bucket}/done/tiny/{run.name}"
    names = set(find(there))
    assert {"bundle.json", "model.safetensors", "config.yaml", "report.html", "metrics.json", "log.txt"} <= names
    assert not [name for name in names if name.startswith("checkpoints") or "lock" in name]
    image = f"{bucket}/images/test/ct/000.jpg"
    expected = consilium.load(run).predict([image])
    assert consilium.load(there).predict([str(tiny_images / "test/ct/000.jpg")])[0]["probability"] == pytest.approx(
        expected[0]["probability"]
    )
    with patch.object(transfer, "_download", side_effect=AssertionError("downloaded twice")):
        answers = cli("predict", there, f"{bucket}/images/test", image, f"{bucket}/images/*/mri/001.jpg")
    assert answers.code == 0, answers.err
    assert len(answers.records) == 12 + 1 + 3
    assert answers.records[12] == expected[0]
    judged = cli("evaluate", there, "--data", f"{bucket}/images/test", "--out", tmp_path / "report")
    assert judged.code == 0, judged.err
    assert (tmp_path / "report" / "report.html").is_file()
    started = tiny(f"trainer.init_from={there}", "optimizer.learning_rate=1e-12")
    assert (started.weights["head.1.weight"] - load_file(run / "model.safetensors")["head.1.weight"]).abs().max() < 1e-6


def test_a_dataset_of_a_bucket_is_the_same_dataset_on_a_disk(bucket: str, tmp_path: Path) -> None:
    """``data.root`` and ``data.dataset`` train a fusion end to end, with cases that lack the text."""
    upload(write_dataset(tmp_path / "skin", rows_of()), f"{bucket}/skin/dataset_v1")
    weights = []
    for place in (str(tmp_path / "skin"), f"{bucket}/skin"):
        data = {**TREE["data"], "root": place, "dataset": "dataset_v1", "store": {"root": str(tmp_path / "stores")}}
        data["filters"] = {"origins": {"derm1m": ["edu"]}}
        output = {"root": str(tmp_path / "runs"), "variation": place.partition(":")[0].strip("/").replace("/", "_")}
        trainer = {**TREE["trainer"], "max_steps": 2}
        tree = {**TREE, "data": data, "output": output, "trainer": trainer}
        result = consilium.train(build(Experiment, tree, origin="test"))
        assert result is not None
        weights.append(load_file(result.folder / "model.safetensors"))
    assert same(*weights)
    (answer,) = consilium.load(result.folder).predict(
        [consilium.Query(f"{bucket}/skin/dataset_v1/imgs/1.png", "Seen once.")]
    )
    assert answer["modalities"] == ["image", "text"]
    with pytest.raises(DataError, match=rf"{bucket}/skin/dataset_v9/metadata_all_harmonized\.csv does not exist"):
        prepare(build(DataConfig, {**data, "dataset": "dataset_v9"}, origin="test"))


def unreachable(tmp_path: Path, **options: str) -> str:
    """What a dataset of a bucket says that Google's client cannot use."""
    import fsspec.config

    data = {"root": "gs://ward/data", "dataset": "dataset_v1", "store": {"root": str(tmp_path / "stores")}}
    with patch.dict(fsspec.config.conf, {"gs": options}), pytest.raises(DataError) as error:
        prepare(build(DataConfig, data, origin="test"))
    return str(error.value)


def test_a_bucket_without_credentials_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key on this machine, and a server that lets nobody in without one; neither needs a network."""
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    told = unreachable(tmp_path, token="google_default")
    assert "gs://ward/data/dataset_v1/metadata_all_harmonized.csv cannot be reached (DefaultCredentialsError" in told
    assert "`gcloud auth application-default login`, or GOOGLE_APPLICATION_CREDENTIALS" in told
    with closed_server() as address:
        told = unreachable(tmp_path, token="anon", endpoint_url=address)
    assert "source 'dataset_v1': gs://ward/data/dataset_v1/metadata_all_harmonized.csv cannot be read" in told
    assert "that this machine has access: `gcloud auth application-default login`" in told


@contextlib.contextmanager
def closed_server() -> Iterator[str]:
    """The address of a server that answers nobody."""

    class Closed(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401, "Anonymous caller does not have storage.objects.get access")

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Closed) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def consilium_yaml(experiment: consilium.Experiment) -> str:
    from consilium.core.config import to_yaml

    return to_yaml(experiment)


def test_weights_of_a_tower_from_the_bucket(bucket: str, tiny: TrainTiny, tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "w.safetensors")
    upload_one = places.filesystem(bucket).put_file
    upload_one(str(tmp_path / "w.safetensors"), f"{bucket}/tower/model.safetensors")
    for place in (f"{bucket}/tower", f"{bucket}/tower/model.safetensors"):
        assert tiny(f"task.vision.pretrained={place}").metrics
    with pytest.raises(WeightsError, match=r"vision\.pretrained: gs://.*none does not exist"):
        tiny(f"task.vision.pretrained={bucket}/none")


def test_archives_in_the_bucket(bucket: str, tiny_images: Path, tiny_run: Run, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "images"), "zip", tiny_images)
    places.filesystem(bucket).put_file(archive, f"{bucket}/images.zip")
    experiment = experiment_on(bucket, tmp_path, "folder", f"data.sources.0.path={bucket}/images.zip")
    assert prepare(experiment.data).store.manifest.cases == 48
    assert not prepare(experiment.data).created
    bundle = shutil.make_archive(str(tmp_path / "bundle"), "zip", tiny_run.folder)
    places.filesystem(bucket).put_file(bundle, f"{bucket}/bundle.zip")
    assert consilium.load(f"{bucket}/bundle.zip").task.labels.leaves == ("ct", "mri", "xray")


@pytest.mark.slow
def test_a_cascade_in_the_bucket_brings_its_networks(bucket: str, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", labels=("ct/chest", "ct/head", "xray/hand"))
    own = ["task.tree.head=cascade", "data.sources.0.label_levels=2", f"output.copy_to={bucket}/done"]
    experiment = tiny_experiment(images, tmp_path / "runs", *own)
    result = consilium.train(experiment)
    assert result is not None
    there, image = f"{bucket}/done/tiny/{result.folder.name}", str(images / "test/xray/hand/000.jpg")
    assert not [name for name in find(there) if "checkpoints" in name]
    assert consilium.load(there).predict(image) == consilium.load(result.folder).predict(image)
    for node, file in (("ct", "model.safetensors"), ("root", "bundle.json")):
        (result.folder / "nodes" / node / file).unlink()
        upload(result.folder, f"{bucket}/{node}/{file}")
        with pytest.raises(BundleError, match=re.escape(f"nodes/{node}/{file} is missing")):
            consilium.load(f"{bucket}/{node}/{file}")


def test_a_council_in_the_bucket_brings_its_members(
    bucket: str, tiny_run: Run, tiny_images: Path, tmp_path: Path
) -> None:
    folder = consilium.build_council(
        router=tiny_run.folder, experts={"ct": tiny_run.folder}, out=tmp_path / "council", quiet=True
    )
    upload(folder, f"{bucket}/council")
    images = sorted(map(str, (tiny_images / "test").rglob("*.jpg")))
    assert consilium.load(f"{bucket}/council").predict(images) == consilium.load(folder).predict(images)
    places.filesystem(bucket).put_file(shutil.make_archive(str(folder), "zip", folder), f"{bucket}/council.zip")
    assert consilium.load(f"{bucket}/council.zip").predict(images) == consilium.load(folder).predict(images)


def test_a_damaged_or_missing_bundle_in_the_bucket(bucket: str, tiny_run: Run, tmp_path: Path) -> None:
    upload_bundle = [tiny_run.folder / name for name in ("bundle.json", "model.safetensors", "config.yaml")]
    for path in upload_bundle:
        places.filesystem(bucket).put_file(str(path), f"{bucket}/b/{path.name}")
    write(f"{bucket}/b/model.safetensors", (tiny_run.folder / "model.safetensors").read_bytes()[:-8])
    with pytest.raises(BundleError, match="its checksum differs"):
        consilium.load(f"{bucket}/b")
    write(f"{bucket}/b/model.safetensors", (tiny_run.folder / "model.safetensors").read_bytes())
    assert consilium.load(f"{bucket}/b").manifest
    with pytest.raises(BundleError, match=rf"{bucket}/none does not exist.*looked there for bundle\.json"):
        consilium.load(f"{bucket}/none")
    places.filesystem(bucket).rm_file(f"{bucket}/b/bundle.json")
    with pytest.raises(BundleError, match=r"has no bundle\.json"):
        consilium.load(f"{bucket}/b")


@pytest.mark.parametrize("place", ["gs://nobody/images", "{bucket}/none"])
def test_sources_that_are_not_there(bucket: str, tmp_path: Path, place: str) -> None:
    path = f"data.sources.0.path={place.format(bucket=bucket)}"
    with pytest.raises(DataError, match=r"source 'images': .*(does not exist|holds no image)"):
        prepare(experiment_on(bucket, tmp_path, "folder", path).data)
    with pytest.raises(DataError, match=r"source 'images': the file .* does not exist"):
        prepare(experiment_on(bucket, tmp_path, "csv", path + ".csv").data)


def test_a_copy_that_fails_loses_nothing(
    bucket: str, tiny: TrainTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunFolderError, match=r"output\.copy_to cannot be used: gs://nobody/.*does not exist"):
        tiny("output.copy_to=gs://nobody/runs", "output.variation=refused")
    assert not list(tmp_path.glob("runs/tiny/refused-*/bundle.json")), "it shows before training"
    tries: list[str] = []
    original = places.filesystem(bucket).put_file

    def unstable(file: str, address: str) -> None:
        tries.append(address)
        if "report.html" in address and len([name for name in tries if "report.html" in name]) <= fails:
            raise TimeoutError("too slow")
        original(file, address)

    monkeypatch.setattr(transfer, "filesystem", lambda _: SimpleNamespace(put_file=unstable))
    fails = 2
    run = tiny(f"output.copy_to={bucket}/runs")
    assert f"{bucket}/runs/tiny/{run.folder.name}" in run.reporter.lines[-1]
    assert tries[-1].endswith("bundle.json"), "what makes it a bundle comes last"
    fails, tries[:] = 99, []
    with pytest.raises(TrainingError, match=r"is finished and whole in .*could not be copied to gs://.*TimeoutError"):
        tiny(f"output.copy_to={bucket}/runs", "output.variation=second")
    (folder,) = tmp_path.glob("runs/tiny/second-*")
    assert consilium.load(folder).manifest
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["status"] == "finished"


@pytest.mark.parametrize("key", ["output.root", "data.store.root"])
def test_what_needs_a_disk_is_refused_in_a_bucket(tiny_images: Path, tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"`{key}`: gs://b/x is an address.* need a disk.*output\.copy_to"):
        tiny_experiment(tiny_images, tmp_path, f"{key}=gs://b/x")


def test_a_large_bucket_is_listed_and_not_asked_file_by_file(bucket: str, tmp_path: Path) -> None:
    entries: dict[str, Any] = {
        f"big/{label}/{number:06d}.jpg": {"size": 1000, "type": "file", "md5Hash": str(number)}
        for label in ("ct", "mri")
        for number in range(50_000)
    }

    class Big:
        def find(self, path: str, *, detail: bool) -> dict[str, Any]:
            assert (path, detail) == ("gs://big", True)
            return entries

    from consilium.data.sources.files import list_inputs

    source = experiment_on(bucket, tmp_path, "folder", "data.sources.0.path=gs://big").data.sources[0]
    with patch.object(places, "filesystem", return_value=Big()):
        started = time.perf_counter()
        inputs = list_inputs(source)
    assert len(inputs.files) == 100_000
    assert inputs.files[0].name == "ct/000000.jpg"
    assert time.perf_counter() - started < 10
