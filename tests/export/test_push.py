"""Pushing to a hub: a stand-in on this machine takes what the hub's own client sends, or refuses it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from consilium.core.errors import ExportError
from consilium.export.run import Push, export
from tests.export.models import classifier, towers
from tests.tiny import Recorder

REPOSITORY = "clinic/expert"


@dataclass
class Hub:
    """Files by name, whether the repository is private, and the status with which everything is refused."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    private: bool | None = None
    refuses: int = 0


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, value: Any) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            if hub.refuses:
                return self.answer(hub.refuses, {"error": "no"})
            if self.path.startswith(f"/api/models/{REPOSITORY}"):
                shown = {"id": REPOSITORY, "private": hub.private, "sha": "0" * 40, "siblings": [], "tags": []}
                return self.answer(200, shown)
            return self.answer(404, {"error": "not here"})

        def do_HEAD(self) -> None:
            self.send_response(404)
            self.end_headers()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if hub.refuses:
                return self.answer(hub.refuses, {"error": "no"})
            if self.path == "/api/repos/create":
                if hub.private is not None:
                    return self.answer(409, {"error": "exists", "url": f"{hub.address}/{REPOSITORY}"})
                given = json.loads(body)
                hub.private = given.get("private", given.get("visibility") == "private")
                return self.answer(200, {"url": f"{hub.address}/{REPOSITORY}", "id": REPOSITORY})
            if self.path == "/api/validate-yaml":
                return self.answer(200, {"errors": [], "warnings": []})
            if "/preupload/" in self.path:
                given = json.loads(body)["files"]
                modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in given]
                return self.answer(200, {"files": modes})
            assert "/commit/" in self.path, self.path
            for line in body.splitlines():
                part = json.loads(line)
                if part["key"] == "file":
                    hub.files[part["value"]["path"]] = base64.b64decode(part["value"]["content"])
            done = {"commitUrl": f"{hub.address}/{REPOSITORY}/commit/{'0' * 40}", "commitOid": "0" * 40}
            return self.answer(200, done)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    return Handler


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler(hub)) as server:
        hub.address = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield hub
        server.shutdown()


Send = Callable[..., Recorder]


@pytest.fixture
def send(tmp_path: Path) -> Send:
    """Exports a classifier into ``out`` and pushes it."""
    bundle = classifier()(tmp_path / "model")

    def run(**options: Any) -> Recorder:
        reporter = Recorder()
        export(bundle, to="timm", out=tmp_path / "out", push_to=Push(REPOSITORY, **options), reporter=reporter)
        return reporter

    return run


def test_a_push_is_private_and_whole(hub: Hub, send: Send, tmp_path: Path) -> None:
    reporter = send()
    assert hub.private is True
    sent = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert {"README.md", "config.json", "model.safetensors"} <= set(sent)
    assert hub.files == sent
    assert reporter.lines[-1] == f"pushed: {hub.address}/{REPOSITORY} (private)"


def test_a_public_repository_takes_nothing_by_chance(hub: Hub, send: Send, tmp_path: Path) -> None:
    hub.private = False
    with pytest.raises(ExportError, match="everybody can read it"):
        send()
    assert hub.files == {}
    assert (tmp_path / "out/model.safetensors").is_file()


def test_public_where_it_is_said(hub: Hub, send: Send) -> None:
    send(public=True)
    assert hub.private is False
    assert hub.files


@pytest.mark.parametrize(("status", "mend"), [(401, "hf auth login"), (403, "may not write there")])
def test_a_hub_that_refuses_leaves_the_export(status: int, mend: str, hub: Hub, send: Send, tmp_path: Path) -> None:
    hub.refuses = status
    with pytest.raises(ExportError, match=rf"refuses {REPOSITORY} with status {status}.*{mend}.*stays in"):
        send()
    assert (tmp_path / "out/model.safetensors").is_file()


def test_a_hub_that_is_not_there(send: Send, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ExportError, match="cannot be reached"):
        send()
    assert (tmp_path / "out/model.safetensors").is_file()


def test_a_name_that_is_none(hub: Hub, tmp_path: Path) -> None:
    bundle = classifier()(tmp_path / "model")
    with pytest.raises(ExportError, match=r"no OWNER/NAME.*stays in"):
        export(bundle, to="timm", out=tmp_path / "out", push_to=Push("a/b/c"), reporter=Recorder())


def test_what_may_identify_a_patient_stops_a_push(hub: Hub, tmp_path: Path) -> None:
    bundle = classifier(labels=("ct", "mri of Dr. Meier", "xray"))(tmp_path / "model")
    push_to, out = Push(REPOSITORY), tmp_path / "out"
    with pytest.raises(ExportError, match=r"config\.json: a name: Dr\. Meier\n.*--allow-identifying"):
        export(bundle, to="timm", out=out, push_to=push_to, reporter=Recorder())
    assert hub.private is None
    allowed, reporter = Push(REPOSITORY, allow_identifying=True), Recorder()
    export(bundle, to="timm", out=tmp_path / "again", push_to=allowed, reporter=reporter)
    assert "may identify a patient: config.json: a name: Dr. Meier" in reporter.lines
    assert hub.files


def test_a_learned_vocabulary_is_looked_at_with_names(tmp_path: Path) -> None:
    bundle, reporter = towers()(tmp_path), Recorder()
    export(bundle, to="safetensors", out=tmp_path / "out", reporter=reporter)
    assert any("were learned from the training texts" in line for line in reporter.lines)
    without = Recorder()
    export(bundle, to="timm", out=tmp_path / "tower", reporter=without)
    assert not any("were learned from the training texts" in line for line in without.lines)
    done = export(bundle, to="safetensors", out=tmp_path / "named", names=["Effusion"], reporter=Recorder())
    assert [(found.file, found.what) for found in done.found] == [("tokenizer.json", "a name of the list")]


def test_open_clip_finds_the_config_of_a_text_tower_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    bundle = towers(size=160)(tmp_path / "model")
    export(bundle, to="open_clip", out=tmp_path / "out", push_to=Push(REPOSITORY), reporter=Recorder())
    sent = json.loads(hub.files["open_clip_config.json"])["model_cfg"]["text_cfg"]
    assert sent["hf_model_name"] == sent["hf_tokenizer_name"] == REPOSITORY
    assert json.loads(hub.files["config.json"])["model_type"] == "bert"
    here = json.loads((tmp_path / "out/open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    assert here["hf_model_name"] == str(tmp_path / "out")
