"""BMP through Pillow, its palette read here."""

from __future__ import annotations

import io
import struct

import numpy as np
from PIL import BmpImagePlugin

from medclipsam.engine.archive.limits import Limits, refuse
from medclipsam.engine.archive.readers.pages import Page

MAGIC = b"BM"
# BITMAPINFOHEADER, biCompression: pixels in another format inside a BMP.
OTHER_CODINGS = {
    4: "JPEG",
    5: "PNG",
    6: "alpha bit fields",
    11: "CMYK",
    12: "CMYK RLE",
    13: "CMYK RLE",
}
OTHER_DEPTHS = (2, 64)
NO_GREY = bytes((1, 2, 3))


def read_bmp(data: bytes, limits: Limits) -> Page:
    """The page of a BMP.

    Of palettes that look grey to it, Pillow makes grey pictures, and fails where they have
    4 bits. So it gets a palette that does not.

    Raises:
        InputError: the picture is too large or stored in another format.
        Exception: whatever Pillow raises on damaged files.
    """
    (header,) = struct.unpack_from("<I", data, 14)
    old = header == 12  # OS/2 1.x
    (bits,) = struct.unpack_from("<H", data, 24 if old else 28)
    coding, used = (0, 0)
    if not old:
        (coding,), (used,) = (struct.unpack_from("<I", data, at) for at in (30, 46))
    if coding in OTHER_CODINGS:
        raise refuse("unsupported", f"no decoder for {OTHER_CODINGS[coding]} inside a BMP")
    if bits in OTHER_DEPTHS:
        raise refuse("unsupported", f"no decoder for a BMP of {bits} bits")
    palette = None
    if bits <= 8:
        start, step = 14 + header, 3 if old else 4
        content = data[start : start + step * min(used or 1 << bits, 1 << bits)]
        entries = np.frombuffer(content, np.uint8, len(content) // step * step)
        palette = entries.reshape(-1, step)[:, 2::-1]  # blue, green, red
        data = data[:start] + NO_GREY + data[start + 3 :]
    with BmpImagePlugin.BmpImageFile(io.BytesIO(data)) as picture:
        limits.check_pixels(1, picture.size[1], picture.size[0])
        picture.load()
        pixels = np.array(picture if picture.mode in ("P", "RGBA") else picture.convert("RGB"))
    if palette is not None:
        return Page(pixels, 255, palette)
    if pixels.shape[-1] == 4:
        return Page(pixels[..., :3], 255, alpha=pixels[..., 3])
    return Page(pixels, 255)
