"""What can be used of the fields of a DICOM file, and a note of each that cannot.

Files come from many writers: numbers with a decimal comma, empty values, a wrong value representation, tables that
describe themselves wrongly. A field that cannot be used is left out, as where it is missing, and a note says so.

Axes in names: H height, W width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from consilium.core.errors import ImageError
from consilium.data.images.pixels import Curve, Values

if TYPE_CHECKING:
    from pydicom import Dataset

_LARGEST = 1e30  # values beyond that do not fit into 32-bit floats once they are multiplied


@dataclass(frozen=True)
class Table:
    """A lookup table: the value that its first entry is for, its entries, and the highest value that they can have."""

    first: int
    entries: npt.NDArray[np.uint16]
    highest: int

    def __call__(self, values_HW: Values) -> npt.NDArray[np.uint16]:
        """Values looked up; those before the first entry get that one, those behind the last the last."""
        places_HW = np.clip(values_HW.astype(np.int64) - self.first, 0, len(self.entries) - 1)
        looked_up_HW: npt.NDArray[np.uint16] = self.entries[places_HW]
        return looked_up_HW

    def meeting(self, low: float, high: float) -> Table:
        """The table for values from ``low`` to ``high``: a first value of the wrong sign is corrected.

        It is written in 16 bits, and whether they are signed depends on other fields, which writers confuse.
        """
        for first in (self.first, self.first - 2**16, self.first + 2**16):
            if first <= high and first + len(self.entries) > low:
                return Table(first, self.entries, self.highest)
        return self


def text(place: Dataset, key: str) -> str:
    """The text of a field; empty where there is none."""
    try:
        value: Any = place.get(key, None)
    except Exception:  # pydicom converts a value when it is asked for it, and raises anything
        return ""
    return "" if value is None else str(value).strip(" \0")


def items(place: Dataset, key: str) -> list[Dataset]:
    """The items of a sequence; none where it is missing or is no sequence."""
    from pydicom.sequence import Sequence

    try:
        value = place.get(key, None)
    except Exception:  # as above
        return []
    return list(value) if isinstance(value, Sequence) else []


def numbers(place: Dataset, key: str) -> list[float]:
    """The numbers of a field, NaN for a value that is none; a decimal comma is a point. Empty where there is none."""
    return [_number(value) for value in _values(place, key)]


def number(place: Dataset, key: str, notes: list[str]) -> float | None:
    """The first finite number of a field, or None; a field that holds something else is noted."""
    found = numbers(place, key)
    usable = next((value for value in found if math.isfinite(value)), None)
    if found and usable is None:
        notes.append(f"its {key} {_shown(place, key)} is no number and is left out")
    return usable


def whole(place: Dataset, key: str) -> int | None:
    """The whole number of a field; None where it has none."""
    found = numbers(place, key)
    return int(found[0]) if found and math.isfinite(found[0]) else None


def rescaled(stored_HW: Values, place: Dataset, *, is_little: bool, notes: list[str]) -> npt.NDArray[np.float32]:
    """Stored values in the units of the image: by the modality table, else by slope and intercept."""
    table = _table_of(place, "ModalityLUTSequence", is_little=is_little, notes=notes)
    if table is not None and stored_HW.dtype.kind in "iu":
        return table.meeting(*_range(stored_HW))(stored_HW).astype(np.float32)
    slope, intercept = number(place, "RescaleSlope", notes), number(place, "RescaleIntercept", notes)
    if slope == 0 or any(abs(value or 0) > _LARGEST for value in (slope, intercept)):
        notes.append(f"its RescaleSlope {slope} and RescaleIntercept {intercept} are left out")
        slope = intercept = None
    if slope is None and intercept is None:
        return np.asarray(stored_HW, dtype=np.float32)
    values_HW = stored_HW * (1.0 if slope is None else slope) + (0.0 if intercept is None else intercept)
    return np.asarray(values_HW, dtype=np.float32)


def curve(values_HW: Values, place: Dataset, *, is_little: bool, notes: list[str]) -> Curve | None:
    """The first usable window (C.11.2 of part 3 of the standard), or else the lookup table, that a file names."""
    function = text(place, "VOILUTFunction").upper() or "LINEAR"
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        notes.append(f"its VOILUTFunction '{function}' is unknown; the window is taken as LINEAR")
        function = "LINEAR"
    centres, widths = numbers(place, "WindowCenter"), numbers(place, "WindowWidth")
    for centre, width in zip(centres, widths, strict=False):
        if abs(centre) < _LARGEST and (1 if function == "LINEAR" else 1e-30) <= width < _LARGEST:
            return _window(function, centre, width)
    if centres or widths:
        window = " and ".join(f"{key} {_shown(place, key)}" for key in ("WindowCenter", "WindowWidth"))
        notes.append(f"its {window} are no window and are left out")
    table = _table_of(place, "VOILUTSequence", is_little=is_little, notes=notes)
    if table is None:
        return None
    table = table.meeting(*_range(values_HW))
    places = table.first + np.arange(len(table.entries), dtype=np.float64)
    return Curve(tuple(places.tolist()), tuple((table.entries / table.highest).tolist()))


def padding(stored_HW: Values, place: Dataset, notes: list[str]) -> npt.NDArray[np.bool_] | None:
    """Where an image has nothing; None where the file does not say."""
    value = number(place, "PixelPaddingValue", notes)
    if value is None or stored_HW.dtype.kind not in "iu":
        return None
    limit = number(place, "PixelPaddingRangeLimit", notes)
    ends = [_as_stored(end, stored_HW.dtype) for end in (value, value if limit is None else limit)]
    is_padding_HW: npt.NDArray[np.bool_] = (stored_HW >= min(ends)) & (stored_HW <= max(ends))
    if limit is not None and is_padding_HW.all():
        is_padding_HW = stored_HW == ends[0]
    return is_padding_HW


def _lookup_table(place: Dataset, prefix: str, *, is_little: bool) -> Table | None:
    """The table of ``{prefix}Descriptor`` and ``{prefix}Data``; None where it cannot be used."""
    descriptor, data = numbers(place, f"{prefix}Descriptor"), _values(place, f"{prefix}Data")
    if len(descriptor) < 3 or not all(map(math.isfinite, descriptor)) or not data:
        return None
    count, first, bits = (int(value) for value in descriptor[:3])
    count = count % 2**16 or 2**16
    entries = _entries(data, count, bits, is_little=is_little)
    if not entries.size:
        return None
    highest = int(entries.max())
    if not 8 <= bits <= 16 or highest >= 2**bits:
        bits = max(8, highest.bit_length())
    return Table(first, entries, 2**bits - 1)


def _range(values_HW: Values) -> tuple[float, float]:
    finite = values_HW[np.isfinite(values_HW)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def palette(place: Dataset, *, name: str, is_little: bool) -> list[Table]:
    """The tables of red, green and blue."""
    tables = []
    for prefix in (f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")):
        table = _lookup_table(place, prefix, is_little=is_little)
        if table is None:
            raise ImageError(
                f"{name} is a DICOM file of the kind PALETTE COLOR whose {prefix}Descriptor and {prefix}Data give no "
                "table; mend them, or leave the row out."
            )
        tables.append(table)
    return tables


def _table_of(place: Dataset, sequence: str, *, is_little: bool, notes: list[str]) -> Table | None:
    found = items(place, sequence)
    if not found:
        return None
    table = _lookup_table(found[0], "LUT", is_little=is_little)
    if table is None:
        notes.append(f"its {sequence} holds no table that can be used and is left out")
    return table


def _entries(data: list[Any], count: int, bits: int, *, is_little: bool) -> npt.NDArray[np.uint16]:
    """At most ``count`` entries: a word each, or a byte each where there are only that many bytes for them."""
    order = "<" if is_little else ">"
    if isinstance(data[0], bytes):
        packed = data[0]
    else:
        words = [int(value) % 2**16 if math.isfinite(value) else 0 for value in map(_number, data)]
        packed = np.array(words, dtype=f"{order}u2").tobytes()
    padded = count + count % 2
    if count <= len(packed) <= padded or (bits <= 8 and len(packed) <= padded):
        return np.frombuffer(packed, np.uint8)[:count].astype(np.uint16)
    return np.frombuffer(packed[: len(packed) // 2 * 2], f"{order}u2")[:count].astype(np.uint16)


def _window(function: str, centre: float, width: float) -> Curve:
    if function == "SIGMOID":
        steps = np.linspace(-2.5, 2.5, 1025)
        return Curve(tuple(centre + width * steps), tuple(1 / (1 + np.exp(-4 * steps))))
    if function == "LINEAR_EXACT":
        return Curve((centre - width / 2, centre + width / 2), (0.0, 1.0))
    return Curve((centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2), (0.0, 1.0))


def _as_stored(value: float, dtype: np.dtype[Any]) -> int:
    """A value as pixels of this type hold it: some writers give a negative one without its sign."""
    span: int = 2 ** (8 * dtype.itemsize)
    low = -span // 2 if dtype.kind == "i" else 0
    result = int(value)
    return low + (result - low) % span if -span // 2 <= result < span else result


def _values(place: Dataset, key: str) -> list[Any]:
    """The values of a field, as pydicom converts them, else as they stand in the file."""
    try:
        value: Any = place.get(key, None)
    except Exception:  # as above
        raw = place.get_item(key)
        value = None if raw is None else raw.value
        if isinstance(value, bytes):
            value = value.decode("latin-1").split("\\")
    if value is None or value == "" or value == b"":
        return []
    return [value] if isinstance(value, str | bytes | int | float) else list(value)


def _number(value: Any) -> float:
    try:
        return float(str(value).strip(" \0").replace(",", "."))
    except ValueError:
        return math.nan


def _shown(place: Dataset, key: str) -> str:
    """What a field holds, short enough for a message."""
    return "'" + "\\".join(str(value) for value in _values(place, key))[:40] + "'"
