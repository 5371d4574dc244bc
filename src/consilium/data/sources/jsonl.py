"""jsonl files in MultiMediset form, line by line; a bad line is reported and the rest goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from consilium.core.errors import DataError
from consilium.data.case import BadRow, Case, RowError, View, scalar_text
from consilium.data.sources.config import JsonlSource
from consilium.data.sources.lines import numbered_lines, open_unpacked, short
from consilium.data.sources.rows import RowReader

_TURNS = ("conversations", "messages")
_MULTIMEDISET_KEYS = frozenset({*_TURNS, "modalities"})
# LLaVA, InternVL, Phi, Qwen-VL, Gemma, DeepSeek-VL, InternLM-XComposer, Idefics and others.
_PLACEHOLDERS = (
    r"<\|?image[ _-]?\d*\|?>|<\|vision_start\|><\|(?:image|vision)_pad\|><\|vision_end\|>|<\|image_pad\|>|<ImageHere>|"
    r"<image_placeholder>|<start_of_image>|<image_soft_token>|<\|attachment\|>|<img></img>|<__media__>|\[IMG\]"
)


def read_jsonl(source: JsonlSource) -> Iterator[Case | BadRow]:
    """The objects of a jsonl file in MultiMediset form.

    Purpose: each line is an object with ``text`` or else ``conversations`` (or ``messages``), a list of
    ``{role or from, content or value}`` (the turns are joined by newlines), and
    ``modalities: [{type: image, value: path}]``; without ``modalities`` the image column is read. Several images are
    several views. Every attachment token, and every placeholder of an image that vision-language models use
    (``<image>``, ``<|image_1|>`` ...), is removed from the text; where a row has any, their number must be that of its
    images. Other keys become metadata. A file may be packed with gzip. Errors: each bad line is a BadRow; blank lines
    are passed over.
    """
    reader = RowReader(source, also_used=_MULTIMEDISET_KEYS)
    present: dict[str, None] = {}
    with open_unpacked(reader.file) as stream:
        for line, raw in numbered_lines(stream):
            content = b"..." if raw is None else raw.strip()
            if not content:
                continue
            if not present and content == b"[":
                raise DataError(
                    f"source '{source.name}': {reader.file} is one JSON list; write one object a line, without "
                    "brackets and commas around them (pandas: to_json(..., orient='records', lines=True))."
                )
            try:
                row = json_object(short(raw))
                present.update(dict.fromkeys(row))
                views = _modalities(reader, row["modalities"]) if "modalities" in row else reader.views(row)
                yield reader.case(row, line, views=views, text=_jsonl_text(source, row, images=len(views)))
            except RowError as error:
                yield reader.bad(line, str(error))
    if present:
        # ``modalities`` stands for the image columns, a conversation for the text.
        stands_for = reader.image_columns if "modalities" in present else []
        text = [source.columns.text] if present.keys() & set(_TURNS) and source.columns.text else []
        reader.check_columns([*present, *stands_for, *text])


def json_object(raw: bytes) -> dict[str, Any]:
    """The object on a line."""
    try:
        row = json.loads(raw.decode(), object_pairs_hook=_each_key_once)
    except json.JSONDecodeError as error:  # its own line number counts from this row
        raise RowError(f"not valid JSON: {error.msg} (character {error.pos + 1})") from None
    except (ValueError, RecursionError) as error:
        raise RowError(f"not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise RowError(f"the line holds a {type(row).__name__}; expected one JSON object a line")
    return row


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):  # json would take the last one
        names = [name for name, _ in pairs]
        raise RowError(f"the key '{next(name for name in names if names.count(name) > 1)}' is given twice; keep one")
    return found


def _modalities(reader: RowReader, modalities: Any) -> list[View]:
    views = []
    for item in modalities if isinstance(modalities, list) else [modalities]:
        if not isinstance(item, dict):
            raise RowError(f"modalities holds a {type(item).__name__}; expected objects {{type: image, value: path}}")
        if item.get("type", "image") != "image":
            raise RowError(f"a modality of type '{item['type']}' is not supported; expected image")
        value = scalar_text(item.get("value"), "modalities value")
        if not value:
            raise RowError("a modality has no value; expected the path of an image")
        views.append(View(reader.path(value), scalar_text(item.get("name"), "modalities name")))
    return views


def _jsonl_text(source: JsonlSource, row: Mapping[str, Any], *, images: int) -> str | None:
    column = source.columns.text
    if column is None:
        return None
    key = next((key for key in _TURNS if key in row), None)
    if row.get(column) is None and key is not None:
        turns = row[key]
        if not isinstance(turns, list):
            raise RowError(f"{key} is a {type(turns).__name__}; expected a list of turns")
        text = "\n".join(map(_turn, turns))
    else:
        text = scalar_text(row.get(column), column)
    if not source.attachment_token:
        return text or None
    placeholder = re.compile(f"{re.escape(source.attachment_token)}|(?i:{_PLACEHOLDERS})")
    without, count = placeholder.subn(" ", text)
    if count and count != images:
        raise RowError(f"the text has {count} attachment tokens, the row {images} images")
    if count:
        lines = (" ".join(line.split()) for line in without.split("\n"))
        text = "\n".join(line for line in lines if line)
    return text or None


def _turn(turn: Any) -> str:
    if not isinstance(turn, dict):
        raise RowError(f"conversations holds a {type(turn).__name__}; expected objects {{role, content}}")
    for key in ("content", "value"):
        if isinstance(turn.get(key), list):  # parts, of which those of images stand for what the row names elsewhere
            texts = [part.get("text") if isinstance(part, dict) else part for part in turn[key]]
            return "\n".join(text for part in texts if (text := scalar_text(part, "conversation content")))
        if key in turn:
            return scalar_text(turn[key], "conversation content")
    raise RowError("a conversation turn has neither content nor value")
