"""What the inputs of a set of cases are like, kept small enough for a bundle."""

from __future__ import annotations

from pydantic import Field

from consilium.core.config import Config


class Spread(Config):
    """A quantity over cases."""

    mean: float
    std: float = Field(description="Standard deviation over cases.")


class InputStatistics(Config):
    """Which fields cases have, and what their images and texts are like; of a sample of cases, spread evenly.

    ``shares``: of cases that have an image, a text, or a value of a metadata column. ``quantities``: of images
    ``width`` and ``height`` in pixels, ``brightness`` (mean of the grey values, 0 to 1), ``contrast`` (their standard
    deviation) and ``colour`` (mean distance of the channels from grey); of texts ``words``.
    """

    cases: int
    shares: dict[str, float] = Field(default={}, description="By field.")
    quantities: dict[str, Spread] = Field(default={}, description="By quantity.")
