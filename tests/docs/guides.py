"""Reading the guides: their blocks, and the script that a reader who follows one would type."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
GUIDES = (
    "first_router",
    "data",
    "tables",
    "checks",
    "mixtures",
    "training",
    "judging",
    "routers",
    "fusion",
    "experts",
    "judging_experts",
    "search",
    "crossval",
    "compare",
    "predicting",
    "council",
    "another_site",
    "export",
    "from_multimeditron",
    "from_ret_clip",
    "configuration",
)
_BLOCK = re.compile(r"^```(?P<head>[^\n`]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_CAPTION = re.compile(r"\A:caption: (?P<name>\S+)\n\n?")


@dataclass(frozen=True)
class Block:
    """A fenced block; ``file`` is the file that its caption tells the reader to save."""

    place: str
    language: str
    text: str
    file: str | None


def read(page: str) -> str:
    return (DOCS / f"{page}.md").read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """``sh`` and ``python`` blocks run and captioned ones are saved; ``console`` and ``text`` are only shown."""
    text = read(page)
    found = []
    for match in _BLOCK.finditer(text):
        body, file = match["body"], None
        caption = _CAPTION.match(body)
        if caption:
            body, file = body[caption.end() :], caption["name"]
        place = f"{page}.md:{text.count(chr(10), 0, match.start()) + 1}"
        found.append(Block(place, match["head"].removeprefix("{code-block}").strip(), body, file))
    return found


def script(page: str) -> str:
    """All that a reader does with a page, in order, as one bash script."""
    lines = ["set -euo pipefail"]
    for number, block in enumerate(blocks(page)):
        end = f"END_OF_BLOCK_{number}"
        if block.file is not None:
            command = f"cat > {shlex.quote(block.file)} <<'{end}'\n{block.text}{end}"
        elif block.language == "python":
            command = f"python - <<'{end}'\n{block.text}{end}"
        elif block.language == "sh":
            command = block.text
        else:
            continue
        lines += [f"echo '>>> {block.place}' >&2", command]
    return "\n".join(lines) + "\n"


def prose(page: str) -> str:
    """The page without its fenced blocks."""
    return _BLOCK.sub("", read(page))
