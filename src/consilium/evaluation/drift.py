"""How the cases of a site differ from those of a training, before any answer is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from consilium.core.inputs import InputStatistics

LARGE = 0.5  # standard deviations of the training: half of a training's cases lie within 0.67 of its mean
SHARE = 0.1  # of cases, by which a share may differ
_STEADY = 1e-6
_QUANTITIES = {
    "brightness": "brightness of images (0 black, 1 white)",
    "contrast": "contrast of images (standard deviation of grey values)",
    "colour": "colour of images (0: grey)",
    "width": "width of images in pixels",
    "height": "height of images in pixels",
    "words": "words of a text",
}


def drift_rows(
    training: InputStatistics | None,
    site: InputStatistics,
    *,
    labels: Mapping[str, tuple[float | None, float]],
) -> list[dict[str, Any]]:
    """Each quantity and share, of the training and of the site, how far they are apart, and whether that is far.

    ``difference`` is in standard deviations of the training for quantities, a difference of shares else; None where the
    bundle does not know its training's. ``labels`` are the shares of labels, of the training and of the site.
    """
    known = training or InputStatistics(cases=0)
    rows = []
    for name, what in _QUANTITIES.items():
        if (own := site.quantities.get(name)) is None:
            continue
        old = known.quantities.get(name)
        apart = None if old is None else _apart(own.mean, old.mean, old.std)
        row = {"training": None if old is None else old.mean, "training_std": None if old is None else old.std}
        far = apart is not None and abs(apart) > LARGE
        rows.append({"what": what, **row, "site": own.mean, "site_std": own.std, "difference": apart, "far": far})
    fields = {**dict.fromkeys(known.shares, 0.0), **site.shares}
    shares = {
        f"share of cases with {_field(name)}": (known.shares.get(name, 0.0) if training else None, share)
        for name, share in fields.items()
    }
    shares |= {f"share of label {name}": both for name, both in labels.items()}
    for what, (before, here) in shares.items():
        if not (before or here):
            continue
        apart = None if before is None else here - before
        far = apart is not None and abs(apart) > SHARE
        row = {"training": before, "training_std": None, "site": here, "site_std": None}
        rows.append({"what": what, **row, "difference": apart, "far": far})
    return rows


def _apart(site: float, training: float, std: float) -> float:
    if std > _STEADY:
        return (site - training) / std
    return 0.0 if abs(site - training) < _STEADY else math.copysign(99.0, site - training)


def _field(name: str) -> str:
    return {"image": "an image", "text": "a text"}.get(name, f"a value of {name.removeprefix('meta.')}")
