"""A bundle leaves: into a folder that another library loads, and from there to a hub."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from consilium.core.errors import ConsiliumError, ExportError
from consilium.core.licenses import license_warnings
from consilium.core.reporter import Reporter
from consilium.data.guards.identifying import VOCABULARY, Finding, identifying
from consilium.export.card import write_card
from consilium.export.forms import FORMS, IMAGE_TOWER, Form, form_of
from consilium.export.hub import push
from consilium.export.hugging_face import check_hub, check_image_tower, write_hub, write_image_tower
from consilium.export.onnx_files import check_onnx, write_onnx
from consilium.export.open_clip_folder import check_open_clip, move, write_open_clip
from consilium.export.plain import write_plain
from consilium.export.preprocessing import differences
from consilium.export.timm_folder import check_timm, write_timm
from consilium.manifest import local_bundle
from consilium.models.hub import short
from consilium.models.trained import DualEncoder, ImageClassifier, Trained
from consilium.predictor import Predictor
from consilium.tasks.family import family_of


@dataclass(frozen=True)
class Push:
    """Where on a hub an export goes; ``allow_identifying``: whatever the last look at its files finds."""

    repository: str
    public: bool = False
    allow_identifying: bool = False


@dataclass(frozen=True)
class Exported:
    """A finished export: its folder, what it is there, what its users must know, and what may identify a patient."""

    folder: Path
    kind: str
    checked: list[str]
    notes: list[str]
    found: list[Finding]
    address: str | None = None


def export(
    bundle: str | Path,
    *,
    to: Form,
    out: str | Path,
    image_tower: bool = False,
    push_to: Push | None = None,
    names: Sequence[str] = (),
    reporter: Reporter,
) -> Exported:
    """Write a bundle in the form of another library, load it there, and compare; the folder must be empty or new.

    ``image_tower``: of ``hf`` that alone. ``names`` of patients are looked for in what leaves. A form that cannot hold
    the model is an ExportError that names those which can, and so is a difference of more than 1e-5; then nothing is
    left in the folder. What may identify a patient stops a push, and so does a hub that refuses: an ExportError, and
    the folder stays.
    """
    if to not in FORMS:
        raise ExportError(f"--to is {to}; give one of {', '.join(FORMS)}.")
    out, place = Path(out).resolve(), local_bundle(bundle)
    _refuse_used(out)
    predictor = Predictor.load(place, device="cpu")
    model = _trained(predictor, bundle)
    kind = form_of(to, model, image_size=predictor.image.size, image_tower=image_tower)
    manifest = predictor.manifest
    assert manifest is not None
    notes = differences(to, predictor.image, looks=predictor.looks)
    if isinstance(model, ImageClassifier) and model.calibration.distances:
        notes.append(
            "Consilium also stops answers by distance (task.answers.distance); the exported model measures none."
        )
    out.mkdir(parents=True, exist_ok=True)
    try:
        checked = _written(model, predictor, out, to=to, kind=kind)
        write_card(out, bundle=place, manifest=manifest, model=model, form=to, kind=kind, notes=notes)
    except BaseException as error:
        shutil.rmtree(out)
        if isinstance(error, ConsiliumError | OSError) or not isinstance(error, Exception):
            raise
        raise ExportError(
            f"{to}: the model cannot be written or loaded there ({type(error).__name__}: {short(error)}), and "
            "nothing is left. Please report it, with the config of the bundle; --to onnx or safetensors may do."
        ) from error
    reporter.line(f"{to}: {kind}, in {out}")
    for line in checked:
        reporter.line(line)
    for line in [*notes, *license_warnings(manifest.licenses or ())]:
        reporter.line(f"note: {line}")
    learned = isinstance(model, DualEncoder) and model.learned_vocabulary and (out / VOCABULARY).is_file()
    if push_to is None:
        return Exported(out, kind, checked, notes, _looked_at(out, names, learned=learned, reporter=reporter))
    with _at(out, push_to.repository, to=to):
        found = _looked_at(out, names, learned=learned, reporter=reporter)
        _refuse_identifying(found, push_to, out)
        address = push(out, push_to.repository, public=push_to.public)
    reporter.line(f"pushed: {address}{'' if push_to.public else ' (private)'}")
    return Exported(out, kind, checked, notes, found, address)


def _looked_at(out: Path, names: Sequence[str], *, learned: bool, reporter: Reporter) -> list[Finding]:
    """What may identify a patient, which is said in any case."""
    found = identifying(out, names=names, learned_vocabulary=learned)
    for finding in found:
        reporter.line(f"may identify a patient: {finding}")
    if learned and not names:
        reporter.line(
            "note: the words of tokenizer.json were learned from the training texts. A name among them is seen with "
            "--names FILE alone, a list of the names of patients."
        )
    return found


def _refuse_identifying(found: Sequence[Finding], push_to: Push, out: Path) -> None:
    if found and not push_to.allow_identifying:
        listed = "".join(f"\n  {finding}" for finding in found)
        raise ExportError(
            f"{out} holds what may identify a patient, and was not pushed to {push_to.repository}:{listed}\nRemove it, "
            "or, where it is harmless, say --allow-identifying."
        )


@contextlib.contextmanager
def _at(out: Path, place: str, *, to: Form) -> Iterator[None]:
    """What open_clip reads names the place where it lies: on the hub another one than here."""
    if to == "open_clip":
        move(out, place)
    try:
        yield
    finally:
        if to == "open_clip":
            move(out, str(out))


def _written(model: Trained, predictor: Predictor, out: Path, *, to: Form, kind: str) -> list[str]:
    image = predictor.image
    if to == "timm":
        write_timm(model, out, image=image)
        return [check_timm(model, out, image=image)]
    if to == "hf" and kind == IMAGE_TOWER:
        write_image_tower(model, out, image=image)
        return [check_image_tower(model, out, image=image)]
    if to == "hf":
        write_hub(model, out, image=image, form=kind)
        return check_hub(model, out, image=image, form=kind)
    if to == "onnx":
        write_onnx(model, out, image=image)
        return check_onnx(model, out, image=image)
    if to == "open_clip":
        assert isinstance(model, DualEncoder)
        write_open_clip(model, out, image=image, place=str(out))
        return [check_open_clip(model, out, image=image)]
    write_plain(model, out, image=image)
    return []


def _trained(predictor: Predictor, bundle: str | Path) -> Trained:
    """What the bundle is made of, in evaluation mode and in the usual layout of memory."""
    manifest = predictor.manifest
    assert manifest is not None
    predictor.task.to(memory_format=torch.contiguous_format)
    model = family_of(manifest.task).trained(predictor.task)
    if model is None and manifest.members:
        inside = ", ".join(str(Path(bundle) / member) for member in manifest.members)
        raise ExportError(
            f"{bundle} is made of several bundles, which no form of another library holds together. Export each of "
            f"them: {inside}."
        )
    if model is None and predictor.task.views:
        raise ExportError(
            f"{bundle} has an image map and a text head for each of its views ({', '.join(predictor.task.views)}) and "
            "for the case, and no form of another library holds more than one of each. Its weights are in "
            "model.safetensors; other programs can ask `consilium predict` for embeddings."
        )
    if model is None:
        raise ExportError(f"{bundle} answers with a task of kind {manifest.task.kind}, which no other library has.")
    return model


def _refuse_used(out: Path) -> None:
    if out.is_file():
        raise ExportError(f"--out is {out}, a file; give a new or empty folder.")
    if out.is_dir() and any(out.iterdir()):
        raise ExportError(f"--out is {out}, which is not empty; give a new or empty folder.")
