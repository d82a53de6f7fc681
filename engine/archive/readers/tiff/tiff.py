"""TIFF and BigTIFF: from directories to pages.

Pixels stay on the stored grid: Orientation is not applied. Samples that are neither
colours nor alpha are channels, as microscopes store them, and each channel is a page of
its own. Reduced copies (NewSubfileType, SubIFDs) are no pages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from medclipsam.engine.archive.limits import Limits, refuse
from medclipsam.engine.archive.readers.pages import Page
from medclipsam.engine.archive.readers.tiff.directory import Directory, read_directories
from medclipsam.engine.archive.readers.tiff.layout import read_layout
from medclipsam.engine.archive.readers.tiff.photometric import to_pages
from medclipsam.engine.archive.readers.tiff.segments import RAW, Layout, read_samples

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
REDUCED_OR_MASK = 1 | 4  # bits of NewSubfileType
OLD_REDUCED = 2  # of SubfileType
LARGE_TILE = 1 << 22  # pixels that a tile may have whatever its page's size
OME_SIZES = re.compile(r"<(?:\w+:)?Pixels\b[^>]*>")


def read_tiff(data: bytes, limits: Limits) -> list[Page]:
    """All pages of a TIFF, their sizes checked before any of them is decoded.

    Raises:
        InputError: the file is damaged, too large, or of an extended kind.
        Exception: whatever Pillow raises on damaged pixels.
    """
    found = read_directories(data)
    directories = [directory for directory in found if not _is_reduced(directory)]
    if not directories:
        raise refuse("unsupported", "expected pages at full size, got reduced copies and masks")
    layouts = _layouts(directories, len(data), limits)
    _check_sizes(layouts, limits)
    _check_places(layouts, len(data))
    return [
        page
        for index, layout in enumerate(layouts)
        for page in to_pages(
            read_samples(data, layout), directories[min(index, len(directories) - 1)], layout
        )
    ]


def _is_reduced(directory: Directory) -> bool:
    """Whether a page is a small copy or the transparency mask of another one."""
    kind = directory.number("NewSubfileType", 0)
    return bool(kind & REDUCED_OR_MASK) or directory.number("SubfileType", 1) == OLD_REDUCED


def _layouts(directories: list[Directory], size: int, limits: Limits) -> list[Layout]:
    """One a page; a stack that one directory stands for has as many as its text says."""
    for directory in directories:
        page = directory.number("ImageLength"), directory.number("ImageWidth")
        limits.check_pixels(1, *page)
    layouts = [read_layout(directory, size) for directory in directories]
    first, layout = directories[0], layouts[0]
    text = first.text("ImageDescription")
    if len(layouts) > 1:
        _check_ome(text, len(layouts))
        return layouts
    count = _stack_size(first, layout)
    if count == 1:
        _check_ome(text, 1)
        return layouts
    if layout.codec != RAW:
        raise refuse(
            "unsupported", f"expected a stack of {count} pages to be uncompressed; save it again"
        )
    limits.check_pixels(count, *layout.size)
    step = sum(layout.counts)
    return [
        replace(layout, offsets=tuple(offset + page * step for offset in layout.offsets))
        for page in range(count)
    ]


def _stack_size(directory: Directory, layout: Layout) -> int:
    """Pages that one directory stands for: ImageJ's and tifffile's stacks follow each other.

    Their programs write the directory before the pixels. Behind them, another program has
    written it, and the description is that of another file.
    """
    text = directory.text("ImageDescription")
    if directory.values.get("UIC2tag") is not None:
        raise refuse("unsupported", "expected a plain TIFF, got a MetaMorph stack (STK)")
    if directory.at > min(layout.offsets):
        return 1
    if text.startswith("ImageJ=") and (match := re.search(r"^images=(\d+)", text, re.MULTILINE)):
        return max(1, int(match[1]))
    if text.startswith("{") and '"truncated"' in text:
        try:
            shape = json.loads(text).get("shape") or [1]
        except ValueError:
            return 1
        page = layout.size[0] * layout.size[1] * layout.samples * layout.planes
        return max(1, int(np.prod(shape, dtype=object)) // page)
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


def _check_sizes(layouts: Sequence[Layout], limits: Limits) -> None:
    first = layouts[0]
    for layout in layouts:
        if layout.size != first.size:
            raise refuse(
                "unsupported",
                f"expected pages of one size, got {first.size} and {layout.size}; "
                "store them as separate files",
            )
    limits.check_pixels(len(layouts), *first.size)
    for layout in layouts:
        if layout.segment[0] * layout.segment[1] > LARGE_TILE + 4 * first.size[0] * first.size[1]:
            raise refuse("too-large", f"a tile of {layout.segment} is far larger than its page")
        samples = layout.samples * layout.planes
        limits.check_bytes(first.size[0] * first.size[1] * samples * layout.dtype.itemsize)


def _check_places(layouts: Sequence[Layout], size: int) -> None:
    for layout in layouts:
        ends = zip(layout.offsets, layout.counts, strict=True)
        if (end := max(offset + count for offset, count in ends)) > size:
            raise refuse("truncated", f"expected TIFF data up to byte {end}, got {size} bytes")
