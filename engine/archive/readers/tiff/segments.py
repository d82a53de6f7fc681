"""Strips and tiles of a TIFF page: tifffile has found them, imagecodecs decodes them.

Refuses to know colours. Where a strip is missing, short or outside the file, tifffile
gives zeros or less; here, that is refused, before anything is decoded where it can be.
No codec gets more room than the strip or tile may fill.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medclipsam.engine.archive.limits import refuse
from medclipsam.engine.archive.readers.codestream import find_end, read_frame

if TYPE_CHECKING:
    from tifffile import TiffPage

RAW, LZW, JPEG, PACKBITS, LZMA, ZSTD, WEBP = 1, 5, 7, 32773, 34925, 50000, 50001
DEFLATE = (8, 32946)
FAX = (2, 3, 4)
PREDICTED = (*DEFLATE, LZW, LZMA, ZSTD)  # elsewhere, libtiff ignores the tag as well
# Depths of the codecs that know pixels. The room of others, JPEG 2000 say, has no cap.
PICTURES = {**dict.fromkeys(FAX, (1,)), JPEG: (8, 12, 16), WEBP: (8,)}
KNOWN_CODECS = (RAW, PACKBITS, *PREDICTED, *PICTURES)
LARGE_TILE = 1 << 22  # pixels that a tile may have whatever its page's size
BYTE_COUNTS = (279, 325)  # tags: of strips, of tiles


@dataclass(frozen=True)
class Segments:
    """The strips or tiles of one page.

    Attributes:
        page: as tifffile has parsed it.
        offsets: of the segments in the file, plane by plane.
        counts: their bytes.
    """

    page: TiffPage
    offsets: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(rows, columns) of a strip or tile; a last strip may have fewer rows."""
        page = self.page
        return page.tilelength or page.rowsperstrip, page.tilewidth or page.imagewidth

    def moved(self, pages: int) -> Segments:
        """Those of a page that lies so many pages behind."""
        step = pages * sum(self.counts)
        return replace(self, offsets=tuple(offset + step for offset in self.offsets))


def check_kind(page: TiffPage) -> None:
    """Refuse samples that cannot be read, or only with guesses."""
    bits, codec = page.bitspersample, page.compression
    if page.samplesperpixel < 1:
        raise refuse("empty", f"expected samples in a pixel, got {page.samplesperpixel}")
    if page.planarconfig not in (1, 2):
        raise refuse("unreadable", f"expected samples in 1 way or 2, got {page.planarconfig}")
    if (depth := max(page.imagedepth, page.tiledepth)) > 1:
        raise refuse("unsupported", f"expected flat TIFF pages, got volumes of {depth} slices")
    if codec not in KNOWN_CODECS:
        name = re.sub("_|(?<=JPEG)(?=[2X])", " ", getattr(codec, "name", "unknown"))
        raise refuse("unsupported", f"no decoder for TIFF compression {int(codec)} ({name})")
    if not isinstance(bits, int):
        raise refuse("unsupported", "expected samples of one type, got several in a pixel")
    # Of three bytes, imagecodecs drops one where the highest comes first; floats are no better.
    kind = "" if page.dtype is None else page.dtype.kind
    three = bits == 24 and (kind == "f" or page.parent.byteorder == ">")
    if kind not in ("b", "u", "i", "f") or three or bits not in PICTURES.get(codec, (bits,)):
        raise refuse(
            "unsupported",
            f"expected TIFF samples of a usual depth, got {bits} bits of sample format "
            f"{page.sampleformat}" + (" as JPEG" if codec == JPEG else ""),
        )
    samples = page.shaped[-1]  # in each pixel of a plane
    if codec in PICTURES and samples not in ((1,) if codec in FAX else (1, 3)):
        raise refuse(
            "unsupported",
            f"expected 1 or 3 samples in a pixel of a JPEG or WebP TIFF, got {samples}",
        )
    if codec not in PREDICTED:
        page.predictor = 1
    known = {1: True, 2: bits in (8, 16, 32, 64), 3: kind == "f"}
    if not known.get(page.predictor):
        raise refuse(
            "unsupported", f"no decoder for TIFF predictor {page.predictor} of {bits}-bit samples"
        )


def find_segments(page: TiffPage, size: int) -> Segments:
    """The places of all segments in a file of ``size`` bytes.

    Counts that a file leaves out are completed.
    """
    segments = Segments(page, page.dataoffsets, page.databytecounts)
    pixels = math.prod(segments.size)
    if pixels < 1:
        raise refuse("unreadable", "expected strips or tiles with pixels, got some without")
    if pixels > LARGE_TILE + 4 * page.imagelength * page.imagewidth:
        raise refuse("too-large", f"a tile of {segments.size} is far larger than its page")
    count = math.prod(page.chunked)
    offsets, counts = page.dataoffsets[:count], page.databytecounts[:count]
    if len(offsets) < count:
        raise refuse("unreadable", f"expected {count} TIFF strips or tiles, got {len(offsets)}")
    counted = any(tag in page.tags for tag in BYTE_COUNTS)
    if page.compression == RAW:
        exact = tuple(_count_bytes(page, index) for index in range(count))
        if counted and any(got < wanted for got, wanted in zip(counts, exact, strict=False)):
            raise refuse("truncated", "expected whole TIFF strips or tiles, got shorter ones")
        counts = exact[: len(counts)] if counted else exact
    elif not counted and count == 1:
        counts = (size - offsets[0],)
    if len(counts) < count or min(*offsets, *counts) < 1:
        raise refuse("truncated", f"expected {count} TIFF strips or tiles, got some without data")
    return Segments(page, tuple(offsets), tuple(counts))


def _count_bytes(page: TiffPage, index: int) -> int:
    _, rows, columns, samples = page.decode(None, index)[2]
    return rows * -(-columns * samples * page.bitspersample // 8)


def read_samples(data: bytes, segments: Segments) -> np.ndarray:
    """All samples of a page: (H, W, S), in this machine's byte order.

    Raises:
        InputError: a segment is damaged or too short.
        Exception: whatever tifffile and imagecodecs raise on damaged segments.
    """
    page = segments.page
    dtype = np.uint8 if page.dtype == bool else page.dtype
    out = np.empty((page.imagelength, page.imagewidth, page.samplesperpixel), dtype)
    for index, (offset, count) in enumerate(zip(segments.offsets, segments.counts, strict=True)):
        _, (plane, _, top, left, _), (_, rows, columns, samples) = page.decode(None, index)
        place = out[top : top + rows, left : left + columns, plane : plane + samples]
        decoded = _decode(data[offset : offset + count], index, segments, rows)
        part = decoded[: place.shape[0], : place.shape[1]]
        if part.shape != place.shape or not np.can_cast(part.dtype, place.dtype):
            raise refuse(
                "unreadable",
                f"expected a TIFF strip or tile of {place.shape}, {place.dtype}, "
                f"got {part.shape}, {part.dtype}",
            )
        place[...] = part
    return out


def _decode(piece: bytes, index: int, segments: Segments, rows: int) -> Any:
    """(rows, columns, S) of a segment."""
    import imagecodecs
    from tifffile import TiffFileError

    page = segments.page
    if page.compression == JPEG:
        _check_jpeg(piece, segments)
    if page.compression == WEBP:  # the room first: elsewhere, its own header says how much
        room = np.empty((rows, segments.size[1], page.samplesperpixel), np.uint8)
        return imagecodecs.webp_decode(piece, out=room)
    try:
        decoded: Any = page.decode(piece, index, jpegtables=page.jpegtables)
    except TiffFileError as exc:
        raise refuse("truncated", "expected a whole TIFF strip or tile, got a part") from exc
    except Exception:
        if rows == segments.size[0]:
            raise
        decoded = page.decode(piece, 0)  # a last strip that is as high as the others
    return decoded[0][0]


def _check_jpeg(piece: bytes, segments: Segments) -> None:
    """Refuse a stream without its end, which libjpeg fills with grey, or of another size."""
    if find_end(piece) is None:
        raise refuse("truncated", "expected JPEG segments up to their end mark, got only a part")
    frame = read_frame(piece)
    if frame is None or frame.rows > segments.size[0] or frame.columns > segments.size[1]:
        raise refuse("unreadable", f"expected a JPEG of {segments.size}, got {frame}")
