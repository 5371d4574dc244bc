"""Config of what changes training images at random: in every draw, or once in copies that are kept."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from consilium.core.config import Config

Probability = Annotated[float, Field(gt=0.0, le=1.0)]
Quality = Annotated[int, Field(ge=1, le=100)]
_ALONE_NOTHING = {"crop_ratio", "resolution_prob"}  # they say how another one changes an image


class RandomChanges(Config):
    """Random changes of images; null turns one off. Factors are uniform in [1 - x, 1 + x]."""

    crop_scale: tuple[Probability, Probability] | None = Field(default=None, description="Area kept, [min, max].")
    crop_ratio: tuple[float, float] = Field(default=(3 / 4, 4 / 3), description="Width / height of the crop.")
    horizontal_flip_prob: Probability | None = Field(default=None, description="Chance to mirror left and right.")
    vertical_flip_prob: Probability | None = Field(default=None, description="Chance to mirror top and bottom.")
    rotation_degrees: float | None = Field(default=None, gt=0, le=180, description="Uniform in [-x, x].")
    translate: Probability | None = Field(default=None, description="Fraction of the side, uniform in [-x, x].")
    scale: tuple[float, float] | None = Field(default=None, description="Zoom [min, max]; 1 keeps the size.")
    brightness_jitter: float | None = Field(default=None, gt=0, le=1, description="Factor on every value.")
    contrast_jitter: float | None = Field(
        default=None, gt=0, le=1, description="Factor on the distance from mean grey."
    )
    saturation_jitter: float | None = Field(default=None, gt=0, le=1, description="Factor on the distance from grey.")
    hue_jitter: float | None = Field(default=None, gt=0, le=0.5, description="Fraction of the colour circle.")
    grayscale_prob: Probability | None = Field(default=None, description="Chance to turn grey.")
    # How other devices and publishers would have shown the image; see ``consilium.data.batches.acquisition``.
    compression: tuple[Quality, Quality] | None = Field(default=None, description="JPEG quality, [min, max].")
    quarter_turn_prob: Probability | None = Field(
        default=None, description="Chance to turn by 90, 180 or 270 degrees; square images only."
    )
    channel_shift: Probability | None = Field(
        default=None, description="Each colour channel times 1 ± x, and moved by up to ± x (values are in [0, 1])."
    )
    gamma: tuple[float, float] | None = Field(default=None, description="Exponent of all values, [min, max].")
    invert_prob: Probability | None = Field(default=None, description="Chance to exchange black and white.")
    blur: float | None = Field(
        default=None, gt=0, le=50, description="Deviation of a gaussian in pixels, uniform in [0, x]."
    )
    resolution: tuple[Probability, Probability] | None = Field(
        default=None, description="Reduced to this share of both sides, [min, max], and enlarged again."
    )
    resolution_prob: Probability | None = Field(default=None, description="Chance of it; null: always.")
    noise: Probability | None = Field(default=None, description="Deviation of gaussian noise, uniform in [0, x].")
    border_prob: Probability | None = Field(
        default=None, description="Chance to shrink the image onto a black, white or grey canvas."
    )

    @property
    def names(self) -> list[str]:
        """The changes that are on."""
        given = {name for name, value in self if value is not None} - _ALONE_NOTHING
        return [name for name in RandomChanges.model_fields if name in given]

    @model_validator(mode="after")
    def _ranges_rise(self) -> RandomChanges:
        ranges = ("crop_scale", "crop_ratio", "scale", "compression", "gamma", "resolution")
        for name, given in ((name, getattr(self, name)) for name in ranges):
            if given is not None and not 0 < given[0] <= given[1]:
                raise ValueError(f"{name} is {list(given)}; expected [min, max] with 0 < min <= max")
        return self


class CopiesConfig(RandomChanges):
    """Copies of every training image, changed at random once, whose features are kept like those of the images.

    The tower stays frozen, and runs once over each copy. A copy is decided by the content of its file, ``seed`` and its
    number.
    """

    number: int = Field(default=1, ge=1, description="Copies of every training image.")
    weight: float = Field(
        default=1.0,
        gt=0,
        description="Draws of copies for one of the image itself: of all draws weight / (1 + weight) show a copy, each "
        "as often as the others.",
    )

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of the draws of a case that show the image itself, then that of each copy."""
        original = 1 / (1 + self.weight)
        return (original, *[(1 - original) / self.number] * self.number)

    @property
    def changes(self) -> AugmentationConfig:
        """What happens to a copy, as it would happen in a draw."""
        return AugmentationConfig(**{name: getattr(self, name) for name in RandomChanges.model_fields})

    @model_validator(mode="after")
    def _change_something(self) -> CopiesConfig:
        if not self.names:
            raise ValueError("no change is given, so that copies would equal their images; give one (crop_scale, ...)")
        return self


class AugmentationConfig(RandomChanges):
    """Random changes of training images; null turns one off. Factors are uniform in [1 - x, 1 + x]."""

    views: Literal["apart", "together", "mirrored"] = Field(
        default="apart",
        description="Several views of a case are changed each in its own way, or all in one; mirrored: in one, and a "
        "horizontal flip also exchanges the views called left and right.",
    )
    copies: CopiesConfig | None = Field(
        default=None,
        description="For a frozen tower: changed copies of every training image, computed once, in the place of "
        "changes in every draw; null: none.",
    )

    @model_validator(mode="after")
    def _copies_alone(self) -> AugmentationConfig:
        fields = type(self).model_fields
        given = [name for name in fields if name != "copies" and getattr(self, name) != fields[name].default]
        if self.copies is not None and given:
            raise ValueError(
                f"copies are changed once, and {', '.join(given)} beside them would change every draw anew; write what "
                "copies can have (all but views) inside copies, and leave out the rest"
            )
        return self
