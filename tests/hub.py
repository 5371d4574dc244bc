"""A hub on this machine: folders of models, served as huggingface.co serves them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SHA = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def local_hub(root: Path) -> Iterator[str]:
    """The address of a hub whose model ORG/NAME is the folder ``root``/ORG/NAME."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                self._about(root / "/".join(parts[2:4]), "/".join(parts[2:4]), parts[4:])
            elif len(parts) > 4 and parts[2] == "resolve":
                self._file(root / "/".join(parts[:2]) / "/".join(parts[4:]))
            else:
                self._send(b"a hub")

        def _about(self, folder: Path, name: str, asked: list[str]) -> None:
            files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
            if not files:
                self._send(b'{"error": "Repository not found"}', status=404, **{"X-Error-Code": "RepoNotFound"})
            elif asked[:1] == ["tree"]:
                self._json([{"type": "file", "oid": _digest(path), "size": path.stat().st_size,
                             "path": str(path.relative_to(folder))} for path in files])  # fmt: skip
            else:
                siblings = [{"rfilename": str(path.relative_to(folder))} for path in files]
                self._json(
                    {"id": name, "modelId": name, "sha": SHA, "siblings": siblings, "tags": [], "private": False}
                )

        def _file(self, path: Path) -> None:
            if path.is_file():
                self._send(path.read_bytes(), ETag=f'"{_digest(path)}"', **{"X-Repo-Commit": SHA})
            else:
                self._send(b"", status=404, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": SHA})

        def _json(self, value: Any) -> None:
            self._send(json.dumps(value).encode(), **{"Content-Type": "application/json"})

        def _send(self, body: bytes, *, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *values: object) -> None:
            """Nothing: what is asked is not printed."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
