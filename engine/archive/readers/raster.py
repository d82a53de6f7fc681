"""PNG, JPEG, TIFF and BMP.

Which reader may touch a file is picked by magic bytes, so that no other format's parser
can be reached. Pixels stay on the stored grid: EXIF orientation is not applied, because
masks are written on that grid, and neither is the resolution in dpi, which scanners set
at random.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image as PillowImage
from PIL import JpegImagePlugin

from medclipsam.engine.archive.limits import Limits, refuse
from medclipsam.engine.archive.readers import bmp, png
from medclipsam.engine.archive.readers.codestream import CODINGS, read_frame
from medclipsam.engine.archive.readers.pages import Page, show_pages, stored_pages
from medclipsam.engine.archive.readers.tiff import tiff
from medclipsam.engine.archive.readers.window import as_frames, is_constant
from medclipsam.engine.errors import InputError
from medclipsam.engine.types import Grid

MAGICS = {
    png.MAGIC: "PNG",
    b"\xff\xd8\xff": "JPEG",
    **dict.fromkeys(tiff.MAGICS, "TIFF"),
    bmp.MAGIC: "BMP",
}
# The JPEGs that libjpeg-turbo reads, at 8 bits.
READ_CODINGS = (0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA)


def raster_kind(data: bytes) -> str:
    """PNG, JPEG, TIFF or BMP by magic bytes, or empty."""
    return next((kind for magic, kind in MAGICS.items() if data.startswith(magic)), "")


def read_raster(data: bytes, limits: Limits) -> tuple[np.ndarray, Grid]:
    """Decode a raster file as displayed.

    Values of 8 bits and fewer are taken as they are, deeper greys and colours pass one
    robust window over all pages, and alpha is composited over black.

    Returns:
        frames uint8 (F, H, W, 3), one a page, and the grid.
    """
    frames = show_pages(_read_pages(data, limits))
    if is_constant(frames):
        raise refuse("constant", "expected a picture, got the same value in every pixel")
    return as_frames(frames), Grid("raster")


def read_raster_mask(data: bytes, limits: Limits) -> tuple[np.ndarray, Grid]:
    """Read a mask: bool (F, H, W), True where a stored value or palette index is nonzero.

    In a WhiteIsZero file, values count from black, so that white is True there as well.
    Transparent pixels are False. JPEG cannot hold a mask exactly; there, the brighter half
    is True.
    """
    values = stored_pages(_read_pages(data, limits))
    if values.ndim == 4:
        values = values.max(axis=-1)
    return (values > 127 if raster_kind(data) == "JPEG" else values != 0), Grid("raster")


def read_raster_levels(data: bytes, limits: Limits) -> tuple[np.ndarray, Grid]:
    """Read grey values as they are stored, in no window: (F, H, W), or (F, H, W, 3) in colour.

    In a WhiteIsZero file, values count from black.
    """
    return stored_pages(_read_pages(data, limits)), Grid("raster")


def _read_pages(data: bytes, limits: Limits) -> Sequence[Page]:
    """All pages of a file; whatever goes wrong in a decoder gets a reason."""
    kind = raster_kind(data)
    try:
        if kind == "TIFF":
            return tiff.read_tiff(data, limits)
        if kind == "PNG":
            return [png.read_png(data, limits)]
        return [_read_jpeg(data, limits) if kind == "JPEG" else bmp.read_bmp(data, limits)]
    except (InputError, MemoryError):
        raise
    except PillowImage.DecompressionBombError as exc:
        raise refuse("too-large", f"a page of this {kind} is larger than Pillow allows") from exc
    except Exception as exc:  # a decoder may raise anything on bytes that are not its own
        if isinstance(exc, EOFError) or "truncated" in str(exc):
            raise refuse("truncated", f"expected a whole {kind} file, got only a part") from exc
        raise refuse("unreadable", f"expected a valid {kind} file, got damaged content") from exc


def _read_jpeg(data: bytes, limits: Limits) -> Page:
    frame = read_frame(data)
    if frame is not None and (frame.coding not in READ_CODINGS or frame.bits != 8):
        raise refuse(
            "unsupported",
            f"expected a JPEG of 8 bits, got {CODINGS[frame.coding]} of {frame.bits} bits",
        )
    with JpegImagePlugin.JpegImageFile(io.BytesIO(data)) as picture:
        limits.check_pixels(1, picture.size[1], picture.size[0])
        picture.load()
        known = picture.mode in ("L", "RGB")
        return Page(np.array(picture if known else picture.convert("RGB")), 255)
