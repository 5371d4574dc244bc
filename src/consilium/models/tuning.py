"""How a tower learns: what is set up before a training, and is no part of a bundle."""

from __future__ import annotations

from consilium.models.config import TextConfig, VisionConfig
from consilium.models.lora import add_lora
from consilium.models.weights import BlockTower


def tune(tower: BlockTower, config: VisionConfig | TextConfig, *, key: str) -> None:
    """Give a tower the adapters that its config asks for; ``key`` is the place of the config."""
    if config.lora is not None:
        add_lora(tower, config.lora, key=f"{key}.lora", base=config.name)
