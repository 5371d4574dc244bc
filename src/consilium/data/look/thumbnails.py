"""Small pictures of cases, for pages that a person looks at."""

from __future__ import annotations

from consilium.core.errors import ImageError
from consilium.data.config import ImageConfig


def thumbnail(image: str | bytes, *, size: int, window: tuple[float, float] | None) -> bytes | None:
    """An image file, or its bytes, as a small JPEG; None where it cannot be read.

    It is drawn anew from the pixels, so that no metadata of the file (names, places) gets out.
    """
    import simplejpeg

    from consilium.data.images.reading import load_view, read_bytes

    name = image if isinstance(image, str) else "embedded image"
    try:
        config = ImageConfig(size=(size, size), fit="pad", window=window)
        pixels = load_view(read_bytes(image), name=name, image=config, box=None)
    except ImageError:
        return None
    encoded: bytes = simplejpeg.encode_jpeg(pixels, quality=85)
    return encoded
