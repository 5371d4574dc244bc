"""What the inputs of cases are like, to compare those of a site with those of a training.

Axes in names: H height, W width, C channel.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from consilium.core.errors import ImageError
from consilium.core.inputs import InputStatistics, Spread
from consilium.data.config import ImageConfig
from consilium.data.images.reading import load_view, read_bytes
from consilium.data.look.pixel_statistics import spread
from consilium.data.store.store import CaseTable

CASES = 300  # at most looked at
_SIDE = 64  # pixels of the small copy that brightness is measured on
_THREADS = 4


def input_statistics(table: CaseTable, *, image: ImageConfig) -> InputStatistics:
    """The statistics of at most ``CASES`` cases; images that cannot be read are left out.

    ``image`` says how grey values of many bits are shown (``window``), and how large an image may be.
    """
    table = table.select(np.array(spread(len(table), CASES), dtype=np.int64))
    small = image.model_copy(update={"size": (_SIDE, _SIDE), "fit": "stretch"})
    firsts = [next(iter(table.images(row)), None) for row in range(len(table))]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = list(pool.map(partial(_measured, image_config=small), firsts))
    looks = [own for own in found if own is not None]
    columns = {name: [look[name] for look in looks] for name in ("brightness", "contrast", "colour")}
    with_image = np.array([first is not None for first in firsts], dtype=bool)
    sizes = table.sizes[with_image].tolist()
    columns |= {"width": [float(w) for w, _ in sizes], "height": [float(h) for _, h in sizes]}
    words = [float(len(text.split())) for text in table.texts if text]
    quantities = {name: _spread(values) for name, values in {**columns, "words": words}.items() if values}
    metas = table.metas
    known = sorted({name for meta in metas for name in meta})
    shares = {"image": _share(with_image), "text": _share(bool(text) for text in table.texts)}
    shares |= {f"meta.{name}": _share(name in meta for meta in metas) for name in known}
    return InputStatistics(cases=len(table), shares=shares, quantities=quantities)


def _measured(image: str | bytes | None, *, image_config: ImageConfig) -> dict[str, float] | None:
    if image is None:
        return None
    try:
        name = image if isinstance(image, str) else "embedded image"
        pixels_HWC = load_view(read_bytes(image), name=name, image=image_config, box=None) / 255.0
    except ImageError:
        return None
    grey_HW = pixels_HWC.mean(axis=2)
    colour = np.abs(pixels_HWC - grey_HW[..., None]).mean()
    return {"brightness": float(grey_HW.mean()), "contrast": float(grey_HW.std()), "colour": float(colour)}


def _spread(values: list[float]) -> Spread:
    return Spread(mean=round(float(np.mean(values)), 6), std=round(float(np.std(values)), 6))


def _share(there: Iterable[bool]) -> float:
    return round(float(np.mean(np.fromiter(there, dtype=bool))), 6)
