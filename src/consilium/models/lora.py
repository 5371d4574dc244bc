"""LoRA: low-rank adapters beside the linear layers of a tower that stays as it is (Hu et al., 2022, arXiv:2106.09685).

The layers are those of peft, and so is the form in which adapters are saved. After a training they are merged into the
weights that they change, so that a bundle has the tensors of the plain tower, and prediction needs no peft.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from consilium.core.errors import ConfigError, MissingExtraError, TrainingError
from consilium.core.files import atomic_folder, write_json
from consilium.core.reporter import counted, some
from consilium.models.config import LoraConfig
from consilium.models.weights import ADAPTER, BlockTower, adapters, save_state

_SHOWN = 8
_NAME = "default"  # of the adapter, as peft calls it where there is one
_ATTENTION = re.compile("attn|attention", re.IGNORECASE)  # in the names of its layers, in timm, transformers, open_clip


def add_lora(tower: BlockTower, config: LoraConfig, *, key: str, base: str) -> None:
    """Put an adapter beside every layer of ``tower`` that ``config`` chooses; ``key`` is the place of the config.

    ``base`` is the name of the tower in the saved adapter. A choice without a layer, or of something that is no linear
    layer, is a ConfigError; so is dropout beside a layer that cannot have it.
    """
    peft = _peft(key)
    chosen = _chosen(tower, config, key=key)
    fused = [name for name, layer in chosen.items() if isinstance(layer, nn.MultiheadAttention)]
    if fused and config.dropout:
        raise ConfigError(
            f"{key}.dropout is {config.dropout}, but {fused[0]} makes query, key and value with one weight, beside "
            f"which an adapter takes none. Set it to 0, or name other layers in {key}.targets."
        )
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=[name for name in chosen if name not in fused],
        target_parameters=[f"{name}.in_proj_weight" for name in fused] or None,
        base_model_name_or_path=base,
    )
    peft.inject_adapter_in_model(settings, tower.model, adapter_name=_NAME)


def _peft(key: str) -> Any:
    try:
        import peft
    except ImportError:
        raise MissingExtraError(key, "lora") from None
    return peft


def _chosen(tower: BlockTower, config: LoraConfig, *, key: str) -> dict[str, nn.Module]:
    """The layers that get an adapter, by name."""
    layers = dict(_layers(tower.model))
    if not layers:
        raise ConfigError(
            f"{key}: this tower ({type(tower.model).__name__}) has no linear layers, beside which an adapter could "
            "lie. Let its last blocks learn (freeze.kind: all_but_last_blocks), or take a transformer (vit_b_16)."
        )
    if isinstance(config.targets, list):
        wanted = {name for target in config.targets for name in _named(tower.model, target, layers, key=key)}
        found = {name: layer for name, layer in layers.items() if name in wanted}
    elif config.targets is not None:
        found = {name: layer for name, layer in layers.items() if re.fullmatch(config.targets, name)}
    else:
        found = {name: layer for name, layer in layers.items() if _ATTENTION.search(name)}
        if config.dropout:  # as in SigLIP, whose attention that pools cannot have it and the others can
            separate = {name: layer for name, layer in found.items() if not isinstance(layer, nn.MultiheadAttention)}
            found = separate or found
    if not found:
        what = "no attention in this tower" if config.targets is None else f"no layer that fits '{config.targets}'"
        raise ConfigError(f"{key}: there is {what}. Name layers in {key}.targets; linear are {_listed(layers)}.")
    if config.last_blocks is None:
        return found
    last = _last_blocks(tower, config.last_blocks, key=key)
    in_them = {name: layer for name, layer in found.items() if any(own in last for own in layer.parameters())}
    if not in_them:
        raise ConfigError(
            f"{key}.last_blocks is {config.last_blocks}, but none of {_listed(found)} lies in these blocks; raise it."
        )
    return in_them


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that can have an adapter: linear ones, and attention with one weight for query, key and value.

    The output projection of such an attention is not among them: torch reads its weight and never calls it, so that an
    adapter beside it would do nothing.
    """
    passed_by = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            passed_by.add(module.out_proj)
            yield name, module
        elif isinstance(module, nn.Linear) and module not in passed_by:
            yield name, module


def _named(model: nn.Module, target: str, layers: Mapping[str, nn.Module], *, key: str) -> list[str]:
    """The layers whose names end in ``target``, in whole parts; none is a ConfigError that says what is there."""

    def ends(name: str) -> bool:
        return f".{name}".endswith(f".{target}")

    if found := [name for name in layers if ends(name)]:
        return found
    other = next(((name, module) for name, module in model.named_modules() if ends(name)), None)
    where = f"{key}.targets: '{target}'"
    if other is None:
        raise ConfigError(f"{where} is no layer of this tower. Linear are {_listed(layers)}.")
    if isinstance(other[1], nn.Linear):
        raise ConfigError(
            f"{where}: torch reads the weight of {other[0]} and never calls it, so that an adapter there would do "
            f"nothing. Name {other[0].rpartition('.')[0].rpartition('.')[2]}, the attention that it belongs to."
        )
    raise ConfigError(f"{where} is no linear layer but a {type(other[1]).__name__}. Linear are {_listed(layers)}.")


def _last_blocks(tower: BlockTower, count: int, *, key: str) -> set[nn.Parameter]:
    """The parameters of the last blocks of a tower."""
    try:
        blocks = tower.blocks()
    except ConfigError as error:
        raise ConfigError(f"{key}.last_blocks: the blocks of this tower cannot be told apart; leave it out.") from error
    if count > len(blocks):
        raise ConfigError(
            f"{key}.last_blocks is {count}, but the tower has {len(blocks)} blocks; give at most that many."
        )
    return {parameter for block in blocks[-count:] for parameter in block}


def _listed(layers: Mapping[str, nn.Module]) -> str:
    """The names of layers, those of all blocks as one: ``blocks.*.attn.qkv``."""
    kinds: dict[str, list[str]] = {}
    for name in layers:
        kinds.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(name)
    return some([f"{kind} ({len(own)})" if len(own) > 1 else own[0] for kind, own in kinds.items()], _SHOWN)


def _adapted(module: nn.Module) -> list[tuple[str, Any]]:
    """The models with adapters in ``module``, by their names in it."""
    return [(name, part) for name, part in module.named_modules() if hasattr(part, "peft_config")]


def adapter_notes(module: nn.Module) -> list[str]:
    """How much of each adapted tower learns, in words."""
    notes = []
    for name, model in _adapted(module):
        learning = sum(parameter.numel() for parameter in adapters(model).values())
        total = sum(parameter.numel() for parameter in model.parameters())
        notes.append(
            f"LoRA: {counted(len(adapters(model)) // 2, 'adapter')} in {name.partition('.')[0]}; "
            f"{learning:,} of its {total:,} parameters learn ({learning / total:.1%})"
        )
    return notes


def base_names(module: nn.Module) -> set[str]:
    """The names of tensors of adapted towers that never change, as in ``module.state_dict()``."""
    return {
        f"{prefix}.{name}" for prefix, model in _adapted(module) for name in model.state_dict() if ADAPTER not in name
    }


def renamed(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a plain model, by the names that they have in ``module``, which may have adapters."""
    names = {name.replace(".base_layer.", "."): name for name in module.state_dict()}
    return {names.get(name, name): tensor for name, tensor in state.items()}


def refuse_unused_adapters(module: nn.Module) -> None:
    """After a backward step: an adapter without a gradient is a ConfigError."""
    idle = [name for name, parameter in adapters(module).items() if parameter.grad is None]
    if idle:
        raise ConfigError(
            f"LoRA: no gradient reaches {_of_layers(idle)}: the tower reads the weights of these layers and never "
            "calls them, so that adapters there would do nothing. Name other layers in lora.targets."
        )


def refuse_unmoved_adapters(module: nn.Module) -> None:
    """After a training: an adapter whose second matrix is still 0, as it began, is a TrainingError."""
    idle = [name for name, parameter in adapters(module).items() if f"{ADAPTER}B." in name and not parameter.any()]
    if idle:
        raise TrainingError(
            f"LoRA: {_of_layers(idle)} never moved, so that the tower there is what it was. Check that the training "
            "goes beyond freeze.warmup_epochs and that the learning rate of the tower (optimizer.groups) is not 0; "
            "else name other layers in lora.targets."
        )


def _of_layers(names: list[str]) -> str:
    layers = dict.fromkeys(name.partition(ADAPTER)[0] for name in names)
    return f"{counted(len(layers), 'adapter')} ({some(list(layers), 3)})"


def save_adapters(module: nn.Module, folder: Path) -> None:
    """Write the adapter of each tower into a folder of its own below ``folder``, in peft's format."""
    for name, model in _adapted(module):
        from peft import get_peft_model_state_dict

        settings = {**model.peft_config[_NAME].to_dict(), "inference_mode": True}
        state = get_peft_model_state_dict(model, adapter_name=_NAME, save_embedding_layers=False)
        folder.mkdir(exist_ok=True)
        with atomic_folder(folder / name.partition(".")[0]) as temporary:
            plain = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}
            write_json(temporary / "adapter_config.json", plain)
            tensors = {f"base_model.model.{tensor}": value for tensor, value in state.items()}
            save_state(tensors, temporary / "adapter_model.safetensors")


def merge_adapters(module: nn.Module) -> None:
    """Add every adapter to the weight beside which it lies, and leave the plain model."""
    for _, model in _adapted(module):
        from peft.tuners.tuners_utils import BaseTunerLayer

        for name, layer in list(model.named_modules()):
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
                model.set_submodule(name, layer.get_base_layer())
        del model.peft_config
