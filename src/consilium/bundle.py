"""What a run leaves, and the Predictor that everything else uses it through."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from consilium.core.config import build
from consilium.core.contracts import Batch, Outputs, Prediction
from consilium.core.errors import BundleError, ConfigError, ConsiliumError, DataError, ImageError, WeightsError
from consilium.core.files import atomic_file, write_json
from consilium.core.labels import LabelTree
from consilium.data.config import AugmentationConfig, ImageConfig, LoaderConfig
from consilium.data.dataset import LabelledCases
from consilium.data.loader import Batches, Images, Loaded, Loader, evaluation_requests
from consilium.data.looks import looks
from consilium.data.rows import Item, Items, is_one_item
from consilium.data.transforms import DeviceTransform
from consilium.evaluation.config import AveragingConfig
from consilium.manifest import (
    MANIFEST,
    NODES,
    WEIGHTS,
    Manifest,
    local_bundle,
    node_folder,
    read_manifest,
    refuse_links,
)
from consilium.models.weights import load_state, load_strict, save_state
from consilium.tasks.answering import Answering
from consilium.tasks.cascade import Cascade, choices
from consilium.tasks.classify import Classify, build_classify


def save_bundle(folder: Path, *, manifest: Manifest, task: Answering) -> None:
    """Write weights, then the manifest that makes the folder a bundle; the networks of a cascade are there already."""
    if isinstance(task, Cascade):
        own: dict[str, Any] = {"nodes": _node_digests(folder, task.names)}
    else:
        with atomic_file(folder / WEIGHTS) as temporary:
            save_state(task.state_dict(), temporary)
        own = {"weights_sha256": _sha256(folder / WEIGHTS)}
    write_json(folder / MANIFEST, manifest.model_copy(update=own).model_dump(mode="json"))


def _node_digests(folder: Path, nodes: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of the manifest of each network, which holds that of its weights."""
    return {node: _sha256(folder / node_folder(node) / MANIFEST) for node in nodes}


def load_cascade(folder: Path, labels: LabelTree) -> Cascade:
    """The trained networks in the folder of a cascade as one task; one that is missing or damaged is a BundleError."""
    networks, images = {}, {}
    refuse_links(folder, [node_folder(node) for node in choices(labels)])
    for node in choices(labels):
        place = folder / node_folder(node)
        if not (place / MANIFEST).is_file():
            raise BundleError(f"the cascade {folder} lacks {place / MANIFEST}, the network of '{node}'. Copy it again.")
        manifest = read_manifest(place)
        networks[node], images[node] = _load_classify(place, manifest), manifest.image
    return Cascade(labels, networks=networks, images=images)


def _load_classify(folder: Path, manifest: Manifest) -> Classify:
    """The network of a bundle, with the weights that its manifest names."""
    if not (folder / WEIGHTS).is_file():
        raise BundleError(f"{folder / WEIGHTS} is missing, without which a bundle is nothing. Copy it again.")
    if _sha256(folder / WEIGHTS) != manifest.weights_sha256:
        raise BundleError(
            f"{folder / WEIGHTS} is not the file that {MANIFEST} names (its checksum differs). Copy the bundle again."
        )
    task = build_classify(
        manifest.task,
        labels=LabelTree(manifest.labels, nested=manifest.task.tree.nested),
        image_size=manifest.image.size,
        class_counts=manifest.class_counts,
        training_cases=manifest.training_cases,
        weights=False,
    )
    load_strict(task, load_state(folder / WEIGHTS), origin=str(folder))
    return task


def _load_task(folder: Path, manifest: Manifest) -> Answering:
    """The task of a bundle, calibrated; whatever is wrong is a BundleError."""
    task: Answering
    try:
        if manifest.task.tree.head == "cascade":
            task = load_cascade(folder, LabelTree(manifest.labels, nested=True))
            found = _node_digests(folder, task.names)
            if other := sorted(node for node, digest in found.items() if manifest.nodes.get(node) != digest):
                raise BundleError(
                    f"the networks in {folder / NODES} are not those that {MANIFEST} names: {', '.join(other)} "
                    "differs. Copy the bundle again."
                )
        else:
            task = _load_classify(folder, manifest)
    except (OSError, ConfigError, DataError, WeightsError) as error:
        raise BundleError(f"bundle {folder} cannot be loaded: {error}") from error
    task.calibrate(manifest.calibration)
    return task


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def choose_device(name: str | torch.device) -> torch.device:
    """The torch device of ``auto`` (cuda, mps, cpu, the first there is) or of its name (cuda:1: the second one)."""
    name = str(name)
    there = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    there += ["mps"] if torch.backends.mps.is_available() else []
    there += ["cpu"]
    if name == "auto":
        return torch.device(there[0].partition(":")[0])
    if name not in there and f"{name}:0" not in there:
        raise ConfigError(f"the device is '{name}', but this machine has {', '.join(there)}; choose one, or auto.")
    return torch.device(name)


@dataclass(frozen=True)
class Arrays:
    """Predictions over rows: ``by_name`` [N, ...] of those that could be read; ``unread`` the others, and why."""

    by_name: dict[str, np.ndarray]
    unread: dict[int, str]


class Predictor:
    """A task ready to answer: decoding, normalisation and model exactly as in training's evaluation."""

    def __init__(
        self,
        task: Answering,
        *,
        image: ImageConfig,
        labels: LabelTree,
        loader: LoaderConfig,
        device: torch.device,
        manifest: Manifest | None = None,
        threshold: float = 0.5,
        averaging: AveragingConfig | None = None,
        cached: Batches | None = None,
    ) -> None:
        """``cached`` gives batches of features for the rows of a training, whose images are then not read."""
        self.task = task
        self.image = image
        self.labels = labels
        self.loader = loader
        self.device = device
        self.manifest = manifest
        self.threshold = threshold
        self.averaging = averaging or AveragingConfig()
        self._cached = cached
        self._transform = DeviceTransform(image, augmentation=None, seed=0)

    def __repr__(self) -> str:
        name = "" if self.manifest is None else f" '{self.manifest.name}'"
        height, width = self.image.size
        return f"<Predictor{name}: {self.labels!r}, images of {height} x {width} pixels, on {self.device}>"

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device = "auto",
        batch_size: int = 32,
        workers: int | None = None,
    ) -> Predictor:
        """The predictor of a bundle (a folder, here or in a bucket, or an archive); a damaged one is a BundleError."""
        own = {"batch_size": batch_size, "workers": "auto" if workers is None else workers}
        loader = build(LoaderConfig, own, origin="the arguments")
        folder = local_bundle(folder)
        manifest = read_manifest(folder)
        chosen = choose_device(device)
        task = _load_task(folder, manifest)
        task.to(chosen).to(memory_format=torch.channels_last)
        task.eval()
        return cls(
            task,
            image=manifest.image,
            labels=task.labels,
            loader=loader,
            device=chosen,
            manifest=manifest,
            threshold=manifest.threshold,
            averaging=manifest.averaging,
        )

    def predict(self, images: Iterable[Item] | Item) -> list[dict[str, Any]]:
        """A record for every item, in order: its answer, or ``{"image": ..., "error": ...}``.

        An item is a path, the bytes of an image file, a Pillow image, an array [H, W] or [H, W, 3] (RGB) of uint8 or
        uint16, or a list or tuple of these: the views of one case.
        """
        whole = is_one_item(images) or isinstance(images, Sequence)
        return list(self.stream(images if whole else list(images)))  # type: ignore[arg-type]

    def stream(self, items: Iterable[Item] | Item) -> Iterator[dict[str, Any]]:
        """As ``predict``, one record at a time, so that any number of images fits; a generator is read as it goes."""
        if is_one_item(items):
            yield from self._records([items])  # type: ignore[list-item]
        elif isinstance(items, Sequence):
            yield from self._records(items)  # type: ignore[arg-type]
        else:
            following = iter(items)  # type: ignore[arg-type]
            while part := list(islice(following, self.loader.eval_batch_size or self.loader.batch_size)):
                yield from self._records(part)

    def _records(self, items: Sequence[Item]) -> Iterator[dict[str, Any]]:
        source = Items(items)
        for row, answer in self._answers(source, range(len(items)), here=source.in_memory()):
            key = {"image": source.name(row)}
            yield {**key, "error": str(answer)} if isinstance(answer, ConsiliumError) else {**key, **answer}

    def _answers(
        self, source: Images, rows: Sequence[int], *, here: bool
    ) -> Iterator[tuple[int, dict[str, Any] | ConsiliumError]]:
        for loaded, arrays in self._run(source, rows, here=here):
            found: dict[int, dict[str, Any] | ConsiliumError] = dict(loaded.errors)
            if loaded.batch is not None and arrays is not None:
                records = self.task.records(arrays, threshold=self.threshold)
                found.update(zip(loaded.batch.rows_B.tolist(), records, strict=True))
            yield from sorted(found.items())

    def _run(self, source: Images, rows: Sequence[int], *, here: bool = False) -> Iterator[tuple[Loaded, Any]]:
        """Decoded batches and their predictions; ``here``: decoded in this process."""
        config = self.loader
        if here or len(rows) <= (config.eval_batch_size or config.batch_size):
            config = config.model_copy(update={"workers": 0})  # starting a process costs more than it saves
        loader = self._cached or Loader(
            source, targets=None, image=self.image, augmentation=AugmentationConfig(), config=config
        )
        for loaded in loader.load(evaluation_requests(rows, config=config)):
            prediction = None
            if loaded.batch is not None:
                batch = self._transform(loaded.batch.to(self.device), train=False)
                prediction = self._predict(batch)
            yield loaded, prediction

    def _predict(self, batch: Batch) -> Prediction:
        """The task's prediction over all looks at the images."""
        if self.averaging.looks == 1:
            return self.task.predict(batch)
        seen = looks(batch.images_BVCHW, mirror=self.averaging.mirror, crops=self.averaging.crops)
        return self.task.combine([self.task.predict(replace(batch, images_BVCHW=images)) for images in seen])

    def arrays(self, source: Images, rows: np.ndarray, *, progress: Callable[[int, int], None] | None = None) -> Arrays:
        """The task's predictions over ``rows``; cases whose image cannot be read are left out, unless all are."""
        parts: dict[str, list[np.ndarray]] = {}
        unread: dict[int, str] = {}
        was_training = self.task.training
        self.task.eval()
        done = 0
        for loaded, prediction in self._run(source, rows.tolist()):
            for row, error in loaded.errors:
                if not isinstance(error, ImageError) or len(unread) + 1 == len(rows):
                    raise error  # an extra that is not installed, or a disk that is not there
                unread[row] = str(error)
            if prediction is not None:
                for name, tensor in prediction.arrays.items():
                    parts.setdefault(name, []).append(tensor.float().cpu().numpy())
            done += len(loaded.errors) + (0 if loaded.batch is None else len(loaded.batch))
            if progress is not None:
                progress(done, len(rows))
        self.task.train(was_training)
        return Arrays({name: np.concatenate(arrays) for name, arrays in parts.items()}, unread)


def case_outputs(
    predictor: Predictor, cases: LabelledCases, split: str, *, progress: Callable[[int, int], None] | None = None
) -> Outputs:
    """The predictor's outputs over one split of LabelledCases, ready for an evaluator."""
    found = predictor.arrays(cases.table, cases.rows[split], progress=progress)
    unread = {cases.table.ids[row]: reason for row, reason in found.unread.items()}
    rows = cases.without(unread).rows[split]
    table = cases.table.select(rows)
    return Outputs(
        arrays=found.by_name,
        targets=cases.targets[rows],
        ids=list(table.ids),
        groups=list(table.groups),
        columns=table.columns(),
        unread=unread,
    )


def recalibrated(task: Answering, outputs: Outputs) -> Outputs:
    """The same outputs with the probabilities that the task gives now."""
    arrays = task.prediction(torch.from_numpy(outputs.arrays["logits"]).to(task.temperatures_K.device)).arrays
    return replace(outputs, arrays={name: tensor.cpu().numpy() for name, tensor in arrays.items()})


def load(bundle: str | Path, *, device: str | torch.device = "auto", batch_size: int = 32) -> Predictor:
    """Load a bundle: ``consilium.load("runs/router/...").predict(["a.png"])``."""
    return Predictor.load(bundle, device=device, batch_size=batch_size)
