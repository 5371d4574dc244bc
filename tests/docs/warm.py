"""``consilium`` as a command that starts at once: each one is forked from a process that has imported what it needs.

A guide gives it twenty times, and a start takes two seconds. Everything else is as in a process of its own: arguments,
folder, environment, the three streams and the exit code.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shlex
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

_CLIENT = """
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    words = [sys.argv[2:], os.getcwd(), dict(os.environ)]
    socket.send_fds(server, [b"f"], [0, 1, 2])
    server.sendall(json.dumps(words).encode())
    server.shutdown(socket.SHUT_WR)
    sys.exit(int(server.recv(16) or b"1"))
"""


@contextlib.contextmanager
def warm_command(folder: Path) -> Iterator[Path]:
    """A folder for the PATH with the command, which works until the end of the block; ``folder`` is a short path."""
    address, command = str(folder / "socket"), folder / "consilium"
    words = shlex.join([sys.executable, "-IS", "-c", _CLIENT, address])
    command.write_text(f'#!/bin/sh\nexec {words} "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen()
        serve = [sys.executable, __file__, str(listening.fileno())]
        server = subprocess.Popen(serve, pass_fds=[listening.fileno()])
    try:
        yield folder
    finally:
        server.terminate()
        server.wait()


def _serve(listening: socket.socket) -> None:
    for name in ("datasets", "pyarrow.dataset", "consilium.cli", "consilium.data.look.inspect", "consilium.session"):
        importlib.import_module(name)
    while True:
        caller, _ = listening.accept()
        _, streams, _, _ = socket.recv_fds(caller, 1, 3)
        if not (child := os.fork()):
            _run(caller, streams)
        for stream in streams:
            os.close(stream)
        _, status = os.waitpid(child, 0)
        with caller, contextlib.suppress(BrokenPipeError):
            caller.sendall(str(os.waitstatus_to_exitcode(status) % 256).encode())


def _run(caller: socket.socket, streams: list[int]) -> None:
    code = 1
    try:
        with caller.makefile("rb") as words:
            arguments, folder, environment = json.load(words)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, mode) for n, mode in enumerate("rww"))
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["consilium", *arguments]
        sys.modules["consilium.cli"].main()
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
