"""Small PNGs and TIFFs of kinds that Pillow does not write."""

from __future__ import annotations

import struct
import zlib

import numpy as np


def png_chunk(kind: bytes, body: bytes, *, is_sound: bool = True) -> bytes:
    """A chunk; one that is not sound has a wrong check sum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ (not is_sound))


def png(rows: bytes, *, width: int, height: int, depth: int, colours: int, beside: bytes = b"") -> bytes:
    """A PNG of rows that are packed already, with other chunks before them."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0))
    stride = len(rows) // height
    filtered = b"".join(b"\0" + rows[row * stride : (row + 1) * stride] for row in range(height))
    return (
        b"\x89PNG\r\n\x1a\n" + header + beside + png_chunk(b"IDAT", zlib.compress(filtered)) + png_chunk(b"IEND", b"")
    )


def _predicted(block_RWS: np.ndarray, predictor: int) -> bytes:
    whole_RWS = block_RWS.view(f"{block_RWS.dtype.byteorder.replace('|', '=')}u{block_RWS.dtype.itemsize}")
    if predictor == 2:
        native = whole_RWS.astype(f"=u{block_RWS.dtype.itemsize}")
        native[:, 1:] -= native[:, :-1].copy()
        return native.astype(whole_RWS.dtype).tobytes()
    rows, width, samples = block_RWS.shape
    itemsize = block_RWS.dtype.itemsize
    bytes_RVB = block_RWS.astype(f">f{itemsize}").reshape(rows, -1, 1).view(np.uint8).reshape(rows, -1, itemsize)
    shuffled = np.ascontiguousarray(bytes_RVB.transpose(0, 2, 1)).reshape(rows, itemsize * width, samples)
    shuffled[:, 1:] -= shuffled[:, :-1].copy()
    return shuffled.tobytes()


def tiff(
    values_HWS: np.ndarray,
    *,
    photometric: int,
    planar: bool = False,
    order: str = "<",
    is_big: bool = False,
    tile: int = 0,
    deflated: bool = False,
    predictor: int = 1,
    more: dict[int, list[int]] | None = None,
) -> bytes:
    """A TIFF in strips of 5 rows or in square tiles; ``more`` are further tags of 16-bit numbers."""
    height, width, samples = values_HWS.shape
    stored = values_HWS.astype(values_HWS.dtype.newbyteorder(order))
    planes = [stored[..., channel : channel + 1] for channel in range(samples)] if planar else [stored]
    rows, columns = (tile, tile) if tile else (5, width)
    blocks = []
    for plane in planes:
        for top in range(0, height, rows):
            for left in range(0, width, columns):
                block = plane[top : top + rows, left : left + columns]
                if tile:
                    block = np.pad(block, [(0, tile - block.shape[0]), (0, tile - block.shape[1]), (0, 0)])
                block = np.ascontiguousarray(block)
                packed = block.tobytes() if predictor == 1 else _predicted(block, predictor)
                blocks.append(zlib.compress(packed) if deflated else packed)
    start = 16 if is_big else 8
    places = [start + sum(map(len, blocks[:number])) for number in range(len(blocks))]
    sizes = [len(block) for block in blocks]
    kind = {"u": 1, "i": 2, "f": 3}[values_HWS.dtype.kind]
    tags: dict[int, tuple[str, list[int]]] = {
        256: ("I", [width]), 257: ("I", [height]), 258: ("H", [8 * values_HWS.dtype.itemsize] * samples),
        259: ("H", [8 if deflated else 1]), 262: ("H", [photometric]), 277: ("H", [samples]),
        284: ("H", [2 if planar else 1]), 317: ("H", [predictor]), 339: ("H", [kind] * samples),
    }  # fmt: skip
    tags |= (
        {322: ("I", [tile]), 323: ("I", [tile]), 324: ("I", places), 325: ("I", sizes)}
        if tile
        else {273: ("I", places), 278: ("I", [rows]), 279: ("I", sizes)}
    )
    tags |= {tag: ("H", numbers) for tag, numbers in (more or {}).items()}
    body, entries, inline = b"".join(blocks), b"", 8 if is_big else 4
    for tag, (form, numbers) in sorted(tags.items()):
        value = struct.pack(f"{order}{len(numbers)}{form}", *numbers)
        if len(value) > inline:
            body, value = body + value, struct.pack(order + ("Q" if is_big else "I"), start + len(body))
        entries += struct.pack(order + ("HHQ" if is_big else "HHI"), tag, {"H": 3, "I": 4}[form], len(numbers))
        entries += value.ljust(inline, b"\0")
    mark = b"II" if order == "<" else b"MM"
    if is_big:
        head = mark + struct.pack(f"{order}HHHQ", 43, 8, 0, start + len(body))
        return head + body + struct.pack(f"{order}Q", len(tags)) + entries + bytes(8)
    head = mark + struct.pack(f"{order}HI", 42, start + len(body))
    return head + body + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
