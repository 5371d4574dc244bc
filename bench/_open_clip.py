"""open_clip's own trainer, ``open_clip_train.main`` of the package open_clip_torch, on towers of our choice.

Measured was 3.3.0. What the trainer needs beside the library is not in consilium's ``clip`` extra.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from consilium.models.weights import save_state

TOKENIZER = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")


def missing() -> str:
    """What to do where the trainer cannot be used; nothing where it can."""
    needed = ("open_clip_train", "webdataset", "braceexpand", "pandas")
    absent = [name for name in needed if find_spec(name) is None]
    if not absent:
        return ""
    return f'open_clip\'s trainer lacks {", ".join(absent)}; install it: pip install "open_clip_torch[training]==3.3.0"'


def write_model(
    folder: Path,
    *,
    embedding_size: int,
    vision: Mapping[str, Any],
    text: Mapping[str, Any],
    encoder: Path | None = None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> str:
    """Describe a model in a folder; returns the name by which open_clip finds it.

    ``encoder`` is a Hugging Face text encoder: its config and tokenizer are copied, its weights are not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if encoder is not None:
        for file in (encoder / name for name in TOKENIZER):
            if file.is_file():
                shutil.copy(file, folder)
        text = {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder), **text}
    config = {
        "model_cfg": {"embed_dim": embedding_size, "vision_cfg": dict(vision), "text_cfg": dict(text)},
        "preprocess_cfg": {"mean": mean, "std": std, "interpolation": "bicubic", "resize_mode": "squash"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return f"local-dir:{folder}"


def write_start(model: str, *, image: Mapping[str, Tensor], text: Mapping[str, Tensor], seed: int) -> None:
    """Save the weights from which a training of ``model`` starts, where the trainer finds them.

    The towers get those given; the rest, the projections, is what the model draws with this seed.
    """
    import open_clip

    torch.manual_seed(seed)
    network: Any = open_clip.create_model(model, load_weights=False, pretrained_text=False)
    fill(network.visual.trunk, image)
    fill(network.text.transformer, text)
    save_state(network.state_dict(), Path(model.partition(":")[2]) / "open_clip_model.safetensors")


def fill(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load all that a module has from a state that may hold more; a tensor that is missing there is an error."""
    module.load_state_dict({name: state[name] for name in module.state_dict()})


def write_pairs(file: Path, pairs: Iterable[tuple[str, str]]) -> None:
    """Image paths and texts as the table that the trainer reads."""
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened, delimiter="\t")
        writer.writerow(["filepath", "title"])
        writer.writerows(pairs)


def train(model: str, logs: Path, **arguments: Any) -> Path:
    """Run the trainer on one CPU thread in this process; returns the last checkpoint. ``True`` makes a flag."""
    from open_clip_train import main

    given = {"model": model, "logs": logs, "name": "run", "device": "cpu", "workers": 0, "save_frequency": 0}
    words: list[str] = []
    for name, value in {**given, **arguments}.items():
        values = value if isinstance(value, tuple) else () if value is True else (value,)
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    if main.main(words) == -1:
        raise SystemExit(f"open_clip's trainer stopped at once; its log is in {logs}")
    (checkpoint,) = (logs / "run" / "checkpoints").glob("*.pt")
    return checkpoint


def trained(model: str, checkpoint: Path) -> tuple[Any, Any, Any]:
    """The network of a checkpoint, its image transform for judging, and its tokenizer."""
    import open_clip

    network, _, transform = open_clip.create_model_and_transforms(model, load_weights=False, pretrained_text=False)
    network.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
    return network.eval(), transform, open_clip.get_tokenizer(model)


def in_channels_last() -> None:
    """Have the trainer make its models in channels_last order, which changes nothing but its time on a processor."""
    from open_clip_train import main

    create = main.create_model_and_transforms

    def created(*given: Any, **named: Any) -> tuple[Any, ...]:
        network, *transforms = create(*given, **named)
        return network.to(memory_format=torch.channels_last), *transforms

    main.create_model_and_transforms = created
