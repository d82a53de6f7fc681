"""PNG, JPEG, TIFF and BMP through Pillow.

Knows which Pillow classes may touch a file: the four below, picked by magic bytes
and called directly, so that no other format's parser can be reached. Pixels stay on
the stored grid: EXIF orientation is not applied, because masks are written on that
grid, and neither is the resolution in dpi, which scanners set at random.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import (
    BmpImagePlugin,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
)
from PIL import Image as PillowImage

from medclipsam.engine.archive.limits import Limits, refuse
from medclipsam.engine.archive.window import as_frames, check_values, over_black, robust_window
from medclipsam.engine.errors import InputError
from medclipsam.engine.types import Grid

Opener = Callable[[io.BytesIO], ImageFile.ImageFile]

# Odd metadata of TIFF files that decode all the same.
warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin$")

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
OPENERS: dict[bytes, tuple[str, Opener]] = {
    PNG_MAGIC: ("PNG", PngImagePlugin.PngImageFile),
    b"\xff\xd8\xff": ("JPEG", JpegImagePlugin.JpegImageFile),
    b"II*\0": ("TIFF", TiffImagePlugin.TiffImageFile),
    b"MM\0*": ("TIFF", TiffImagePlugin.TiffImageFile),
    b"II+\0": ("TIFF", TiffImagePlugin.TiffImageFile),
    b"MM\0+": ("TIFF", TiffImagePlugin.TiffImageFile),
    b"BM": ("BMP", BmpImagePlugin.BmpImageFile),
}
DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # windowed; all others have 8 bits
OFFSETS, COUNTS = (273, 324), (279, 325)  # TIFF tags of strips and tiles


def raster_kind(data: bytes) -> str:
    """PNG, JPEG, TIFF or BMP by magic bytes, or empty."""
    return next((kind for magic, (kind, _) in OPENERS.items() if data.startswith(magic)), "")


def read_raster(data: bytes, limits: Limits) -> tuple[np.ndarray, Grid]:
    """Decode a raster file as displayed.

    8-bit kinds are taken as they are, alpha is composited over black, and 16-bit,
    32-bit and float greys pass a robust window over all pages. (Pillow itself cuts
    16-bit RGB to its upper bytes.)

    Returns:
        frames uint8 (F, H, W, 3), one a page, and the grid.
    """
    pages = _stack(data, limits, _shown)
    check_values(pages)
    if pages.dtype != np.uint8:
        pages = robust_window(pages)
    return as_frames(pages), Grid("raster")


def read_raster_mask(data: bytes, limits: Limits) -> tuple[np.ndarray, Grid]:
    """Read a mask: bool (F, H, W), True where a stored value or palette index is nonzero.

    JPEG cannot hold a mask exactly; there, the brighter half is True.
    """
    pages = _stack(data, limits, _indexed)
    if pages.ndim == 4:
        pages = pages.max(axis=-1)
    return pages > (127 if raster_kind(data) == "JPEG" else 0), Grid("raster")


def read_raster_levels(data: bytes, limits: Limits) -> tuple[np.ndarray, Grid]:
    """Read grey values as they are stored, in no window: (F, H, W), or (F, H, W, 3) in colour."""
    return _stack(data, limits, _indexed), Grid("raster")


def _stack(
    data: bytes, limits: Limits, values_of: Callable[[PillowImage.Image], np.ndarray]
) -> np.ndarray:
    """All pages of a file as one array (F, H, W) or (F, H, W, 3)."""
    kind = raster_kind(data)
    if kind == "PNG":
        _check_png(data)
    if kind == "TIFF":
        _check_tiff_chain(data)
    try:
        arrays = [values_of(page) for page in _pages(data, kind, limits)]
    except (InputError, MemoryError):
        raise
    except PillowImage.DecompressionBombError as exc:
        raise refuse("too-large", f"a page of this {kind} is larger than Pillow allows") from exc
    except Exception as exc:  # a decoder may raise anything on bytes that are not its own
        if isinstance(exc, EOFError) or "truncated" in str(exc):
            raise refuse("truncated", f"expected a whole {kind} file, got only a part") from exc
        raise refuse("unreadable", f"expected a valid {kind} file, got damaged content") from exc
    if len({(array.shape, array.dtype) for array in arrays}) > 1:
        raise refuse("unsupported", "expected pages of one size and kind, got different ones")
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


def _pages(data: bytes, kind: str, limits: Limits) -> Iterator[PillowImage.Image]:
    """Decoded pages, their sizes checked before any of them is decoded."""
    opener = next(opener for name, opener in OPENERS.values() if name == kind)
    with opener(io.BytesIO(data)) as picture:
        width, height = picture.size
        limits.check_pixels(1, height, width)
        count = 1
        if isinstance(picture, TiffImagePlugin.TiffImageFile):
            count = _check_tiff(picture, len(data), limits)
        for page in range(count):
            if count > 1:
                picture.seek(page)
            picture.load()
            yield picture


def _check_tiff(picture: TiffImagePlugin.TiffImageFile, size: int, limits: Limits) -> int:
    """Number of pages, after a look at every page's header."""
    count, shape = picture.n_frames, picture.size
    limits.check_pixels(count, shape[1], shape[0])
    for page in range(count):
        picture.seek(page)
        if picture.size != shape:
            raise refuse(
                "unsupported",
                f"expected pages of one size, got {shape} and {picture.size}; "
                "store them as separate files",
            )
        offsets = next((picture.tag_v2[tag] for tag in OFFSETS if tag in picture.tag_v2), ())
        counts = next((picture.tag_v2[tag] for tag in COUNTS if tag in picture.tag_v2), ())
        end = max((o + c for o, c in zip(offsets, counts, strict=False)), default=0)
        if end > size:
            raise refuse("truncated", f"expected TIFF data up to byte {end}, got {size} bytes")
    picture.seek(0)
    return count


def _check_tiff_chain(data: bytes) -> None:
    """Walk the page directories: where one is cut off, Pillow drops the pages from there on."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    pointer, counter, entry = ("Q", "Q", 20) if big else ("I", "H", 12)
    at, visited = 8 if big else 4, set()
    try:
        (page,) = struct.unpack_from(order + pointer, data, at)
        while page and page not in visited:
            visited.add(page)
            (entries,) = struct.unpack_from(order + counter, data, page)
            at = page + struct.calcsize(order + counter) + entries * entry
            (page,) = struct.unpack_from(order + pointer, data, at)
    except (struct.error, OverflowError) as exc:  # BigTIFF holds offsets beyond any index
        raise refuse("truncated", f"expected more TIFF pages beyond byte {len(data)}") from exc


def _check_png(data: bytes) -> None:
    """Walk the chunks: Pillow itself does not verify the checksums of pixel data."""
    at = len(PNG_MAGIC)
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        critical = not name[0] & 0x20
        if (
            critical
            and zlib.crc32(data[at + 4 : end - 4]).to_bytes(4, "big") != data[end - 4 : end]
        ):
            raise refuse("unreadable", "expected intact PNG chunks, got a checksum that differs")
        if name == b"IEND":
            return
        at = end
    raise refuse("truncated", f"expected a PNG up to its end mark, got {len(data)} bytes")


def _shown(page: PillowImage.Image) -> np.ndarray:
    """(H, W) or (H, W, 3) of one page: uint8 as displayed, or deep greys as stored."""
    if page.mode in DEEP:
        return _native(page)
    if "transparency" in page.info and page.mode in ("1", "L", "P", "RGB"):
        page = page.convert("RGBA")
    elif page.mode in ("P", "PA"):
        page = page.convert("RGBA" if page.mode == "PA" else "RGB")
    if page.mode in ("LA", "RGBA"):
        pixels = over_black(np.array(page))
        return pixels[..., 0] if page.mode == "LA" else pixels
    if page.mode == "1":
        page = page.convert("L")
    if page.mode in ("CMYK", "YCbCr", "RGBX"):
        page = page.convert("RGB")
    if page.mode not in ("L", "RGB"):
        raise refuse("unsupported", f"expected a grey or colour picture, got mode {page.mode}")
    return np.array(page)


def _indexed(page: PillowImage.Image) -> np.ndarray:
    """(H, W) or (H, W, 3) of one mask page: palette indices and deep greys as stored."""
    if page.mode == "P":
        return np.array(page)
    if page.mode == "PA":
        return np.array(page.getchannel(0))
    return _shown(page)


def _native(page: PillowImage.Image) -> np.ndarray:
    """Deep greys in this machine's byte order."""
    values = np.array(page)
    return values.astype(values.dtype.newbyteorder("="), copy=False)
