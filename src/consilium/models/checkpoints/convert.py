"""Checkpoints of other programs into a folder that is read as a model of open_clip; every tensor is accounted for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from consilium.core.errors import ConfigError, WeightsError
from consilium.core.files import atomic_folder, sha256_of, write_json
from consilium.core.reporter import some
from consilium.models.checkpoints.find import find_model
from consilium.models.checkpoints.forms import FORMS, Form, Rule
from consilium.models.encoders import HubEncoder
from consilium.models.hub import HEADS
from consilium.models.parts import first_names
from consilium.models.weights import load_checkpoint, save_state

REPORT = "conversion.json"


@dataclass
class Converted:
    """A folder that was written: the form of the file, a row for each part, and how a config names it."""

    folder: Path
    form: str
    rows: list[dict[str, str | int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def convert(file: Path, *, out: Path, tokenizer: str | None = None, ignored: Collection[str] = ()) -> Converted:
    """Write the weights of ``file`` as the folder ``out``.

    ``tokenizer`` is the folder or name of one, or a ``vocab.txt``; it is copied. ``ignored`` names classes whose
    objects in the file are left out. A file of another form is written as it is, as ``model.safetensors``. What cannot
    be read, or lacks a part of what it seems to be, is a WeightsError; nothing is written then.
    """
    if out.exists():
        raise ConfigError(f"{out} exists; give another --out.")
    state, beside = load_checkpoint(file, ignored=ignored)
    form = next((form for form in FORMS if all(_has(state, mark) for mark in form.marks)), None)
    with atomic_folder(out) as work:
        done = _as_it_is(state, work) if form is None else _as_open_clip(form, state, work, tokenizer, file)
        done.folder = out
        if beside:
            done.rows.append({"part": "no weights", "tensors": 0, "in the file": some(beside, 5), "here": "left out"})
        done.notes = [note.replace("FOLDER", str(out)) for note in done.notes]
        report = {"form": done.form, "file": file.name, "sha256": sha256_of(file), "tensors": done.rows}
        write_json(work / REPORT, report)
    return done


def _has(state: Mapping[str, Tensor], mark: str) -> bool:
    return any(name == mark or (mark.endswith(".") and name.startswith(mark)) for name in state)


def _as_it_is(state: Mapping[str, Tensor], work: Path) -> Converted:
    save_state(state, work / "model.safetensors")
    row: dict[str, str | int] = {"part": "all", "tensors": len(state), "in the file": first_names(state)}
    notes = [
        f"the file is none of {', '.join(form.name for form in FORMS)}: its tensors are written as they are. Name the "
        "model that they are of in task.vision, task.text or task.model, and the folder as its `pretrained`."
    ]
    return Converted(work, "other", [{**row, "here": "model.safetensors"}], notes)


def _as_open_clip(form: Form, state: Mapping[str, Tensor], work: Path, tokenizer: str | None, file: Path) -> Converted:
    towers, heads, rows = _sorted(form, state)
    try:
        described = form.describe(towers)
    except KeyError as error:
        raise WeightsError(
            f"{file} looks like {form.name}, but lacks the tensor {error}; it holds {first_names(state)}."
        ) from error
    if form.towers_only:
        described |= {"towers_only": form.towers_only, "views": list(form.views)}
    done = Converted(work, form.name, rows)
    write_json(work / "open_clip_config.json", described)
    save_state(towers, work / "open_clip_model.safetensors")
    if heads:
        save_state(heads, work / HEADS)
    _check(work, file, form)
    if tokenizer is not None:
        _write_tokenizer(tokenizer, work, rows=_vocabulary(towers))
    elif form.tokenizer is not None:
        done.notes.append(f"its tokenizer is taken from {form.tokenizer} on the hub; --tokenizer brings one along.")
    both = "task.vision and task.text, each {kind: open_clip, name: FOLDER}"
    if form.views:
        names = ", ".join(form.views)
        done.notes.append(f"with its heads it is task.model: FOLDER beside task.views: {{names: [{names}]}}.")
    done.notes.append(
        f"use it as {both}: {form.towers_only}; its own heads are kept in {HEADS}."
        if form.towers_only
        else f"use it as task.model: FOLDER, or its towers as {both}."
    )
    return done


def _sorted(
    form: Form, state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[dict[str, str | int]]]:
    """The tensors of the towers and of the heads under their new names, and a row for each rule."""
    towers: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    counts: dict[Rule, int] = {}
    left = []
    for name, tensor in state.items():
        rule = next((rule for rule in form.rules if name.startswith(rule.old)), None)
        if rule is None:
            left.append(name)
            continue
        counts[rule] = counts.get(rule, 0) + 1
        if rule.new is not None:
            target = heads if rule.head else towers
            target[rule.new + name.removeprefix(rule.old)] = tensor.T.contiguous() if rule.turned else tensor
    rows: list[dict[str, str | int]] = []
    for rule in form.rules:
        if rule in counts:
            here = "left out" if rule.new is None else f"{HEADS}: {rule.new}" if rule.head else rule.new
            here += ", transposed" if rule.turned else ""
            rows.append({"part": rule.part, "tensors": counts[rule], "in the file": rule.old, "here": here})
    if left:
        rows.append({"part": "unknown", "tensors": len(left), "in the file": some(left, 3), "here": "left out"})
    if form.towers_only and not form.views:
        new = "random: a training makes them"
        rows.append({"part": "projections into one space", "tensors": 0, "in the file": "none that fit", "here": new})
    return towers, heads, rows


def _check(folder: Path, file: Path, form: Form) -> None:
    """Load both towers: what lacks a tensor, or has one of another shape, is a WeightsError."""
    model = find_model(str(folder), key="task.vision.name")
    try:
        model.image(image_size=model.layout.image.input.size)
        missing = sorted(name for name in model.text().missing if not name.startswith("pooler."))
    except (ConfigError, WeightsError) as error:
        why = str(error).replace(str(folder), str(file))
        raise WeightsError(f"{file} looks like {form.name}, but is not: {why}") from error
    if missing:
        raise WeightsError(
            f"{file} looks like {form.name}, but lacks {len(missing)} tensors of its text tower: {some(missing, 5)}."
        )


def _write_tokenizer(place: str, folder: Path, *, rows: int) -> None:
    """Copy a tokenizer into a folder; one with more tokens than there are embeddings is a ConfigError."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    if place.endswith(".txt"):
        if not Path(place).is_file():
            raise ConfigError(f"--tokenizer {place} does not exist.")
        library = tokenizers.BertWordPieceTokenizer(place, lowercase=True)
        definition = library.to_str()
    else:
        definition, _ = HubEncoder(place).tokenizer()
    own = tokenizers.Tokenizer.from_str(definition)
    if (size := own.get_vocab_size()) > rows:
        raise ConfigError(
            f"--tokenizer {place} has {size:,} tokens, the text tower embeddings of {rows:,}; give the tokenizer that "
            "it was trained with."
        )
    marks = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    there = {key: token for key, token in marks.items() if own.token_to_id(token) is not None}
    PreTrainedTokenizerFast(tokenizer_object=own, **there).save_pretrained(folder)


def _vocabulary(towers: Mapping[str, Tensor]) -> int:
    words = towers.get("text.transformer.embeddings.word_embeddings.weight")
    return len(towers["token_embedding.weight"] if words is None else words)
