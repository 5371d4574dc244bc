"""jsonl files in MultiMediset form, line by line; a bad line is reported and the rest goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from consilium.core.errors import DataError
from consilium.data.case import BadRow, Case, RowError, Text, View, scalar_text
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
    (``<image>``, ``<|image_1|>`` ...), is removed from the text, and a note says so; where a row has any, their number
    must be that of its images. Other keys become metadata. A file may be packed with gzip. Errors: each bad line is a
    BadRow; blank lines are passed over.
    """
    reader = RowReader(source, also_used=_MULTIMEDISET_KEYS, has_null=True)
    placeholder = _placeholder(source)
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
                yield _case(reader, row, line, placeholder=placeholder)
            except RowError as error:
                yield reader.bad(line, str(error))
    if present:
        # ``modalities`` stands for the image columns, a conversation for the text.
        stands_for = reader.image_columns if "modalities" in present else []
        texts = reader.text_columns if present.keys() & set(_TURNS) else []
        reader.check_columns([*present, *stands_for, *texts])


def json_object(raw: bytes) -> dict[str, Any]:
    """The object on a line."""
    try:
        row = _DECODER.decode(raw.decode())
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


_DECODER = json.JSONDecoder(object_pairs_hook=_each_key_once)


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


def _placeholder(source: JsonlSource) -> re.Pattern[str] | None:
    """What stands for an image in the texts of a source; None where all texts stay as they are."""
    given = source.attachment_token
    tokens = [token for token in ([given] if isinstance(given, str) else given) if token]
    return re.compile("|".join([*map(re.escape, tokens), f"(?i:{_PLACEHOLDERS})"])) if tokens else None


def _case(reader: RowReader, row: Mapping[str, Any], line: int, *, placeholder: re.Pattern[str] | None) -> Case:
    """The case of an object, whose texts are without what stands for its images."""
    views = _modalities(reader, row["modalities"]) if "modalities" in row else reader.views(row)
    texts = _texts(reader, row)
    found = [] if placeholder is None else [placeholder.findall(text.text) for text in texts]
    tokens = [token for own in found for token in own]
    if placeholder is None or not tokens:
        return reader.case(row, line, views=views, texts=texts)
    # Of several captions each may name all images.
    if len(tokens) != len(views) and {len(own) for own in found} != {len(views)}:
        raise RowError(f"the text has {len(tokens)} attachment tokens, the row {len(views)} images")
    texts = [text._replace(text=_without(placeholder, text.text)) for text in texts]
    case = reader.case(row, line, views=views, texts=[text for text in texts if text.text])
    first = reader.example("attachment token", tokens[0])
    case.notes += (f"attachment tokens, such as '{first}', are removed from the text",)
    return case


def _without(placeholder: re.Pattern[str], text: str) -> str:
    """A text without its attachment tokens, and without the spaces and empty lines that they leave."""
    if not placeholder.search(text):
        return text
    lines = (" ".join(line.split()) for line in placeholder.sub(" ", text).split("\n"))
    return "\n".join(line for line in lines if line)


def _texts(reader: RowReader, row: Mapping[str, Any]) -> list[Text]:
    """The texts of an object as they stand there: those of its text columns, or else of its conversation."""
    key = next((key for key in _TURNS if key in row), None)
    if key is None or not reader.text_columns or any(row.get(column) is not None for column in reader.text_columns):
        return reader.texts(row)
    turns = row[key]
    if not isinstance(turns, list):
        raise RowError(f"{key} is a {type(turns).__name__}; expected a list of turns")
    text = "\n".join(map(_turn, turns))
    return [Text(text)] if text else []


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
