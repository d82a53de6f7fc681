"""TIFF and BigTIFF: tifffile reads the directories, here they become pages.

Pixels stay on the stored grid: Orientation is not applied. Samples that are neither
colours nor alpha are channels, as microscopes store them, and each channel is a page of
its own. Reduced copies (NewSubfileType, SubIFDs) are no pages.
"""

from __future__ import annotations

import io
import json
import logging
import re
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from medclipsam.engine.archive.limits import Limits, refuse
from medclipsam.engine.archive.readers.pages import Page
from medclipsam.engine.archive.readers.tiff.photometric import to_pages
from medclipsam.engine.archive.readers.tiff.segments import (
    RAW,
    Segments,
    check_kind,
    find_segments,
    read_samples,
)

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
WIDTH, LENGTH, PHOTOMETRIC, STK_PLANES = 256, 257, 262, 33629  # tags
# Those that pixels depend on; where one leads out of the file, tifffile goes on without it.
DECISIVE = {254, 255, 256, 257, 258, 259, 262, 266, 270, 273, 277, 278, 279, 284, 292, 293, 317}
DECISIVE |= {320, 322, 323, 324, 325, 332, 338, 339, 347, 530, 32997, 32998, 33629}
# Programs whose files tifffile pages in other ways than by the chain of directories.
CHAINED: dict[str, Any] = {"is_lsm": False, "is_ndpi": False, "is_scanimage": False}
REDUCED_OR_MASK = 1 | 4  # bits of NewSubfileType
NOWHERE = logging.NullHandler()
OME_SIZES = re.compile(r"<(?:\w+:)?Pixels\b[^>]*>")


def read_tiff(data: bytes, limits: Limits) -> list[Page]:
    """All pages of a TIFF, their sizes checked before any of them is decoded.

    Raises:
        InputError: the file is damaged, too large, or of an extended kind.
        Exception: whatever tifffile and imagecodecs raise on damaged files.
    """
    import tifffile

    remarks = logging.getLogger("tifffile")  # they may quote the file; what matters is refused here
    remarks.addHandler(NOWHERE)
    remarks.propagate = False
    try:
        with tifffile.TiffFile(io.BytesIO(data), **CHAINED) as file:
            stored = _read_directories(file, data)
            stack = _find_segments(stored, len(data), limits)
            return [
                page
                for segments in stack
                for page in to_pages(read_samples(data, segments), segments.page)
            ]
    except tifffile.TiffFileError as exc:
        raise refuse("truncated", "expected a whole TIFF, got damaged directories") from exc


def _read_directories(file: TiffFile, data: bytes) -> list[TiffPage]:
    """The pages at full size of the chain; those below others (SubIFDs) are left aside."""
    found: dict[int, TiffPage] = {}
    for page in cast("list[TiffPage]", file.pages):
        if page.offset in found:
            break
        _check_tags(page, data)
        found[page.offset] = page
    else:
        # tifffile ends a chain where it leads out of the file.
        at, size = file.pages.next_page_offset or 0, file.tiff.offsetsize
        if not found or data[at : at + size] != bytes(size):
            raise refuse("truncated", f"expected more TIFF pages beyond byte {len(data)}")
    pages = [page for page in found.values() if not page.subfiletype & REDUCED_OR_MASK]
    if not pages:
        raise refuse("unsupported", "expected pages at full size, got reduced copies and masks")
    return pages


def _check_tags(page: TiffPage, data: bytes) -> None:
    tiff = page.parent.tiff
    (count,) = np.frombuffer(data, f"{tiff.byteorder}u{tiff.tagnosize}", 1, page.offset)
    entry = np.dtype([("code", f"{tiff.byteorder}u2"), ("rest", f"V{tiff.tagsize - 2}")])
    entries = np.frombuffer(data, entry, count, page.offset + tiff.tagnosize)
    known = {tag.code for tag in page.tags}
    if lost := DECISIVE & set(entries["code"].tolist()) - known:
        raise refuse("truncated", f"expected the TIFF tags {sorted(lost)} in the file, got a part")
    if lost := {WIDTH, LENGTH, PHOTOMETRIC} - known:
        raise refuse("unreadable", f"expected the TIFF tags {sorted(lost)} in every page, got none")
    if STK_PLANES in known:
        raise refuse("unsupported", "expected a plain TIFF, got a MetaMorph stack (STK)")


def _find_segments(pages: list[TiffPage], size: int, limits: Limits) -> list[Segments]:
    """One a page; a stack that one directory stands for has as many as its text says."""
    first = pages[0]
    rows, columns = first.imagelength, first.imagewidth
    limits.check_pixels(len(pages), rows, columns)
    for page in pages:
        if (page.imagelength, page.imagewidth) != (rows, columns):
            raise refuse(
                "unsupported",
                f"expected pages of one size, got {rows, columns} and "
                f"{page.imagelength, page.imagewidth}; store them as separate files",
            )
        check_kind(page)
        limits.check_bytes(rows * columns * page.samplesperpixel * np.dtype(page.dtype).itemsize)
    stack = [find_segments(page, size) for page in pages]
    count = 1 if len(pages) > 1 else _stack_size(first, stack[0])
    if count > 1:
        if first.compression != RAW:
            raise refuse("unsupported", f"expected {count} pages uncompressed; save them again")
        limits.check_pixels(count, rows, columns)
        stack = [stack[0].moved(page) for page in range(count)]
    else:
        _check_ome(first.description, len(pages))
    ends = (max(map(sum, zip(part.offsets, part.counts, strict=True))) for part in stack)
    if (end := max(ends)) > size:
        raise refuse("truncated", f"expected TIFF data up to byte {end}, got {size} bytes")
    return stack


def _stack_size(page: TiffPage, segments: Segments) -> int:
    """Pages that one directory stands for: ImageJ's and tifffile's stacks follow each other.

    Their programs write the directory before the pixels. Behind them, another program has
    written it, and the description is that of another file.
    """
    text = page.description
    if page.offset > min(segments.offsets):
        return 1
    if text.startswith("ImageJ=") and (match := re.search(r"^images=(\d+)", text, re.MULTILINE)):
        return max(1, int(match[1]))
    if text.startswith("{") and '"truncated"' in text:
        try:
            shape = json.loads(text).get("shape") or [1]
        except ValueError:
            return 1
        size = page.imagelength * page.imagewidth * page.samplesperpixel
        return max(1, int(np.prod(shape, dtype=object)) // size)
    return 1


def _check_ome(text: str, pages: int) -> None:
    """Refuse an OME-TIFF with fewer pages than its text says, unless they are elsewhere."""
    pixels = OME_SIZES.findall(text) if "<" in text and "OME" in text else []
    if len(pixels) != 1 or "FileName=" in text:
        return
    sizes = {axis: re.search(rf'\bSize{axis}="(\d+)"', pixels[0]) for axis in "CZT"}
    planes = 1
    for match in sizes.values():
        planes *= int(match[1]) if match else 1
    samples = re.search(r'\bSamplesPerPixel="(\d+)"', text)
    planes //= int(samples[1]) if samples and int(samples[1]) else 1
    if planes > pages:
        raise refuse("truncated", f"expected {planes} pages as OME says, got {pages}")
