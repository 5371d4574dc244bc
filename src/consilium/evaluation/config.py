"""Config of evaluation and report; imports no heavy library."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from consilium.core.config import Config


class AveragingConfig(Config):
    """Further looks at each image; the probabilities of all of them are averaged. Saved in the bundle."""

    mirror: bool = Field(default=False, description="Also the image mirrored left and right.")
    crops: list[Annotated[float, Field(gt=0.0, lt=1.0)]] = Field(
        default=[], description="Also its centre: for each number that share of both sides, enlarged."
    )
    zooms: list[Annotated[float, Field(gt=0.0, lt=1.0)]] = Field(
        default=[],
        description="Also its centre as the file has it, at full resolution: for each number that share of the area "
        "(0.25: half of both sides), as data.augmentation.crop_scale counts.",
    )

    @property
    def looks(self) -> int:
        """How often the model sees each image."""
        return (1 + self.mirror) * (1 + len(self.crops) + len(self.zooms))


class EvaluationConfig(Config):
    """Which figures, and how their intervals are drawn."""

    bootstrap_samples: int = Field(default=1000, ge=0, description="Resamples of groups; 0: no intervals.")
    confidence: float = Field(default=0.95, gt=0.5, lt=1.0, description="Of the intervals.")
    seed: int = Field(default=0, description="Of the resamples.")
    columns: list[str] = Field(default=["source"], description="Figures per value of these columns (source, metadata).")
    max_column_values: int = Field(default=30, ge=1, description="A column with more values is left out, and named.")
    averaging: AveragingConfig = AveragingConfig()


class DistanceConfig(Config):
    """How far an answer's features may lie from those of training cases (Mahalanobis), as a second reason to stop."""

    share: float = Field(
        default=0.99,
        gt=0.0,
        le=1.0,
        description="Of validation cases at each level: as many lie within its threshold.",
    )


class AnswersConfig(Config):
    """How probabilities of labels become answers, and how these are judged; of every task with labels."""

    threshold: float = Field(default=0.5, gt=0.0, lt=1.0, description="Decision threshold of multi-label tasks.")
    calibrate: bool = Field(
        default=True,
        description="One label a case: after training, fit a temperature for each node of the tree on validation.",
    )
    wanted_accuracy: float | None = Field(
        default=None,
        gt=0.0,
        lt=1.0,
        description="One label a case: of answers. Below thresholds chosen for it on validation an answer stops at the "
        "parent, or is unknown; null: every case is answered whole.",
    )
    distance: DistanceConfig | None = Field(
        default=None,
        description="One label a case, flat or joint: an answer also stops at the parent, or is unknown, where the "
        "features of the case lie too far from those of the training cases of the label; {}: by its defaults.",
    )
    specificities: list[float] = Field(default=[0.9, 0.95], description="Sensitivity is given at each of these.")
    calibration_bins: int = Field(default=15, ge=2, description="Of equal width, from 0 to 1.")


class ReportConfig(Config):
    """What the HTML report shows."""

    images: bool = Field(default=True, description="false leaves every thumbnail of a case out.")
    cases: int = Field(default=12, ge=0, description="How many worst and least certain cases.")
    saliency: int = Field(
        default=6, ge=0, description="How many cases show which places of the image their answer depends on; 0: none."
    )
    thumbnail_size: int = Field(default=128, ge=32, le=512, description="Longer side in pixels.")
