"""The parts of a tower: its layers from input to output, and what no readout uses."""

from __future__ import annotations

from typing import Any

from torch import nn

from consilium.core.errors import ConfigError


def layer_blocks(model: Any, *, advice: str) -> list[list[nn.Parameter]]:
    """All parameters in blocks: the embeddings, then each layer; what follows the last layer joins it.

    A model whose layers cannot be told apart, such as one whose layers share weights, is a ConfigError with ``advice``.
    """
    count = getattr(model.config, "num_hidden_layers", None)
    lists = [
        name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not lists:
        raise ConfigError(f"the layers of this encoder ({model.config.model_type}) cannot be told apart; {advice}.")
    stem = lists[0]
    blocks: list[list[nn.Parameter]] = [[]]
    for name, parameter in model.named_parameters():
        number = name.removeprefix(f"{stem}.").partition(".")[0] if name.startswith(f"{stem}.") else None
        place = len(blocks) - 1 if number is None else int(number) + 1
        while len(blocks) <= place:
            blocks.append([])
        blocks[place].append(parameter)
    return blocks


def depths_of(tower: nn.Module, layers: list[list[nn.Parameter]]) -> list[int]:
    """How many layers lie above that of each parameter of a tower."""
    above = {parameter: len(layers) - 1 - n for n, layer in enumerate(layers) for parameter in layer}
    return [above[parameter] for parameter in tower.parameters()]


def drop_unused(model: nn.Module) -> set[nn.Parameter]:
    """After a backward pass: take out the modules that no gradient reached, so that every parameter gets one.

    Gives the single parameters that no gradient reached beside others of their module that one did.
    """
    unused = {parameter for parameter in model.parameters() if parameter.grad is None}
    model.zero_grad(set_to_none=True)
    for name, module in list(model.named_modules()):
        parameters = set(module.parameters())
        if name and parameters and parameters <= unused:
            unused -= parameters
            model.set_submodule(name, nn.Identity())
    return unused
