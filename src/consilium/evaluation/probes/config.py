"""The ``probes`` section; imports no heavy library."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from consilium.core.config import Config

PLACE = "{label}"  # in a template


def with_place(templates: list[str]) -> list[str]:
    """Templates that all have a place for the label; one without is a ValueError."""
    for template in templates:
        if PLACE not in template:
            raise ValueError(
                f"'{template}' has no {PLACE}, so that it would say the same of every label; put {PLACE} where the "
                "label belongs"
            )
    return templates


class ZeroShotConfig(Config):
    """Labels as texts: each image gets the label whose prompts are most similar to it (CLIP).

    Every phrase of a label is put into every template, and the embeddings of all these prompts are averaged. With
    several labels a case the prompts of a label are set against its negative ones (CheXzero).
    """

    templates: list[str] = Field(
        default=[PLACE],
        min_length=1,
        description="Texts with {label} in them, into each of which every phrase of a label is put.",
    )
    prompts: dict[str, Annotated[list[str], Field(min_length=1)]] | None = Field(
        default=None,
        description="Phrases for every label of the data: {mel: [melanoma, malignant melanoma]}; null: the last part "
        "of its dot path, with spaces in the place of underscores.",
    )
    negative_templates: list[str] = Field(
        default=["no {label}"], min_length=1, description="multi_label only: texts that say a label does not apply."
    )
    negative_prompts: dict[str, Annotated[list[str], Field(min_length=1)]] = Field(
        default={},
        description="multi_label only: whole texts in the place of the negative templates of a label, as in "
        "{no_finding: [abnormal chest]}.",
    )

    _label_has_a_place = field_validator("templates", "negative_templates")(with_place)

    @field_validator("prompts", "negative_prompts")
    @classmethod
    def _phrases_say_something(cls, prompts: dict[str, list[str]] | None) -> dict[str, list[str]] | None:
        for label, phrases in (prompts or {}).items():
            if not all(phrase.strip() for phrase in phrases):
                raise ValueError(f"'{label}' has an empty phrase; leave it out")
        return prompts


class ProbesConfig(Config):
    """What ``consilium evaluate`` asks of the frozen image tower, on labelled cases."""

    multi_label: bool = Field(default=False, description="A case has any number of labels, none too.")
    zero_shot: ZeroShotConfig | None = Field(default=None, description="Labels as texts; null: not asked.")
    knn: int | None = Field(
        default=None, ge=1, description="Votes of so many most similar training images; null: not asked."
    )
    linear: bool = Field(
        default=False,
        description="A logistic head, fitted to convergence; train's left-out groups choose its strength.",
    )
    few_shot: list[Annotated[int, Field(ge=1)]] = Field(
        default=[], description="Means of so many training images of each class, such as [1, 2, 4, 8, 16]."
    )
    few_shot_draws: int = Field(default=10, ge=1, description="How often the images of few_shot are drawn.")
    features: Literal["embedding", "tower"] = Field(
        default="embedding",
        description="What knn, linear and few_shot see: the embedding, or the features of the tower below it.",
    )
    seed: int = Field(default=0, ge=0, description="Of the images of few_shot and the groups that linear leaves out.")

    @property
    def learned(self) -> tuple[str, ...]:
        """The probes that learn from a train split."""
        asked = {"knn": self.knn is not None, "linear": self.linear, "few_shot": bool(self.few_shot)}
        return tuple(name for name, own in asked.items() if own)

    @model_validator(mode="after")
    def _asks_what_fits(self) -> ProbesConfig:
        if self.zero_shot is None and not self.learned:
            raise ValueError("nothing is asked; give zero_shot, knn, linear or few_shot")
        if self.multi_label and self.few_shot:
            raise ValueError("few_shot draws images of each class, which needs one label a case; leave it out")
        if self.zero_shot is not None and self.zero_shot.negative_prompts and not self.multi_label:
            raise ValueError("zero_shot.negative_prompts needs multi_label: true; leave it out")
        return self


class OneProbes(Config):
    """A ``probes`` section alone."""

    probes: ProbesConfig
