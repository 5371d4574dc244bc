"""A small stand-in for the Hugging Face hub: the endpoints that streaming a dataset calls, and their failures."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

DATASET = "clinic/scans"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """A dataset of one version, served from ``folder``; what was asked for is counted.

    ``fault`` is asked for every GET of a file, with its number from 1: a status to answer with, 'drop' to break the
    connection in the middle of the answer, None to serve it. ``token``: without it the answer is 401. ``starts``:
    where in their files the answers began.
    """

    folder: Path
    commit: str = COMMIT
    token: str | None = None
    info_status: int = 200
    retry_after: str | None = "0"
    fault: Callable[[int], int | str | None] = lambda number: None
    requests: Counter[str] = field(default_factory=Counter)
    starts: list[int] = field(default_factory=list)
    url: str = ""

    def files(self) -> dict[str, Path]:
        """The files of the dataset, by their names in it."""
        return {str(p.relative_to(self.folder)): p for p in sorted(self.folder.rglob("*")) if p.is_file()}


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _json(self, value: Any, status: int = 200, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refused(self, status: int) -> None:
        extra = {"Retry_After": self.hub.retry_after} if status == 429 and self.hub.retry_after is not None else {}
        code = {401: "RepoNotFound", 403: "GatedRepo", 404: "RepoNotFound"}.get(status)
        self._json({"error": f"status {status}"}, status, **extra, **({"X_Error_Code": code} if code else {}))

    def _answer(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        length = int(self.headers.get("Content-Length") or 0)
        posted = self.rfile.read(length).decode() if length else ""
        api, resolve = f"/api/datasets/{DATASET}", f"/datasets/{DATASET}/resolve/"
        if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
            hub.requests["unauthorised"] += 1
            return self._refused(401)
        if path.startswith(resolve):
            fault = None
            if self.command == "GET":
                hub.requests["file"] += 1
                fault = hub.fault(hub.requests["file"])
            return self._file(path.removeprefix(resolve).partition("/")[2], fault)
        if path in (api, f"{api}/revision/{hub.commit}", f"{api}/revision/main"):
            hub.requests["info"] += 1
            if hub.info_status != 200:
                return self._refused(hub.info_status)
            siblings = [{"rfilename": name} for name in hub.files()]
            return self._json({"id": DATASET, "sha": hub.commit, "siblings": siblings, "tags": [], "private": False,
                               "gated": False, "disabled": False, "downloads": 0, "likes": 0})  # fmt: skip
        if path.startswith((f"{api}/tree/{hub.commit}", f"{api}/tree/main")):
            hub.requests["tree"] += 1
            recursive = "recursive=true" in urlsplit(self.path).query.lower()
            return self._json(self._tree(path.removeprefix(f"{api}/tree/").partition("/")[2], recursive=recursive))
        if path.startswith(f"{api}/paths-info/"):
            hub.requests["paths"] += 1
            asked = [unquote(part.partition("=")[2]).replace("+", " ") for part in posted.split("&")]
            return self._json([item for item in self._tree("", recursive=True) if item["path"] in asked])
        hub.requests[f"other {path}"] += 1
        return self._json({"error": "not found"}, 404, X_Error_Code="EntryNotFound")

    do_GET = do_HEAD = do_POST = _answer

    def _tree(self, under: str, *, recursive: bool) -> list[dict[str, Any]]:
        start = f"{under}/" if under else ""
        items: dict[str, dict[str, Any]] = {}
        for name, path in self.hub.files().items():
            if not name.startswith(start):
                continue
            parts = name.removeprefix(start).split("/")
            for depth in range(1, len(parts)):
                folder = start + "/".join(parts[:depth])
                if recursive or depth == 1:
                    items[folder] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": folder}
            if recursive or len(parts) == 1:
                items[name] = {"type": "file", "oid": "1" * 40, "size": path.stat().st_size, "path": name}
        return list(items.values())

    def _file(self, name: str, fault: int | str | None) -> None:
        if isinstance(fault, int):
            return self._refused(fault)
        path = self.hub.files().get(name)
        if path is None:
            return self._json({"error": "not found"}, 404, X_Error_Code="EntryNotFound")
        data = path.read_bytes()
        start, stop = 0, len(data)
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1, len(data)) if last else len(data)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(stop - start))
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"1"')
        self.send_header("X-Repo-Commit", self.hub.commit)
        self.end_headers()
        if self.command == "HEAD":
            return None
        if fault == "drop":
            self.wfile.write(data[start : start + (stop - start) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return None
        self.hub.starts.append(start)
        self.wfile.write(data[start:stop])
        return None


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve a hub on a free port of this machine; ``hub.url`` is its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
