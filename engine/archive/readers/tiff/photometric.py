"""What the samples of a TIFF page mean: greys, colours, alpha, palette indices or channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as PillowImage

from medclipsam.engine.archive.limits import refuse
from medclipsam.engine.archive.readers.pages import Page
from medclipsam.engine.archive.readers.tiff.segments import JPEG, WEBP

if TYPE_CHECKING:
    from tifffile import TiffPage

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, INDEXED, INKS, YCBCR = 0, 1, 2, 3, 5, 6
INK_SET = 332  # a tag
GREYS = (WHITE_IS_ZERO, BLACK_IS_ZERO)
OTHER_COLOURS = {
    4: "transparency mask",
    8: "CIE L*a*b*",
    9: "ICC L*a*b*",
    10: "ITU L*a*b*",
    32803: "colour filter array of a camera",
    32844: "CIE Log L",
    32845: "CIE Log L(u'v')",
    34892: "linear raw of a camera",
}
MORE_SAMPLES = 1  # beside colours: alpha, or padding that is left out
ASSOCIATED, UNASSOCIATED = 1, 2  # values of ExtraSamples


def to_pages(samples: np.ndarray, stored: TiffPage) -> list[Page]:
    """The page or, of several channels, the pages of (H, W, S) samples."""
    kind = int(stored.photometric)
    shallow = samples.dtype.kind == "u" and stored.bitspersample <= 8
    top = (1 << stored.bitspersample) - 1 if shallow else 0
    colours = {RGB: 3, YCBCR: 3, INKS: 4}.get(kind, 1)
    if kind in OTHER_COLOURS or kind not in (*GREYS, INDEXED, RGB, YCBCR, INKS):
        name = OTHER_COLOURS.get(kind, "unknown")
        raise refuse(
            "unsupported", f"no display of TIFF photometric interpretation {kind} ({name})"
        )
    count = samples.shape[-1]
    if kind == RGB and count < colours:  # channels of a microscope
        kind, colours = BLACK_IS_ZERO, 1
    if count < colours:
        raise refuse("unreadable", f"expected {colours} samples in a pixel, got {count}")
    place, premultiplied = _alpha_place(stored.extrasamples, count, colours)
    alpha = None if place is None else _to_alpha(samples[..., place], stored.bitspersample)
    if kind == INDEXED:
        return [Page(samples[..., 0], top, _palette(stored, samples.dtype.kind), alpha)]
    if place is not None and _is_stack_of_four(stored):
        raise refuse(
            "unsupported",
            "expected colours or a stack, got four planes that tifffile has labelled as RGB and "
            "alpha because nothing else was asked for; write a stack with "
            "photometric='minisblack', a colour picture with planarconfig='contig'",
        )
    if colours > 1 and count - colours > MORE_SAMPLES:
        raise refuse(
            "unsupported",
            f"expected {colours} colours and alpha at most, got {count} samples in a pixel; "
            "store channels as greys",
        )
    if colours > 1:
        values, top = _to_rgb(samples[..., :colours], kind, stored, top)
        return [Page(values, top, None, alpha, premultiplied)]
    return [
        Page(samples[..., channel], top, None, alpha, premultiplied, kind == WHITE_IS_ZERO)
        for channel in range(count)
        if channel != place
    ]


def _alpha_place(extra: Sequence[int], samples: int, colours: int) -> tuple[int | None, bool]:
    """Which sample is alpha, and whether colours have been multiplied by it."""
    if not extra and colours == 3 and samples == 4:
        return 3, False  # colour and one sample more, without a word: alpha
    for place, meaning in enumerate(extra, start=colours):
        if meaning in (ASSOCIATED, UNASSOCIATED) and place < samples:
            return place, meaning == ASSOCIATED
    return None, False


def _is_stack_of_four(stored: TiffPage) -> bool:
    """Whether tifffile wrote an array (4, H, W): as a stack of four it gets the same tags."""
    shape = f"[4, {stored.imagelength}, {stored.imagewidth}]"
    return stored.shaped[0] == 4 and stored.description.startswith(f'{{"shape": {shape}')


def _to_alpha(values: np.ndarray, bits: int) -> np.ndarray:
    """uint8 (H, W) of an alpha sample of any depth."""
    full = 1.0 if values.dtype.kind == "f" else float((1 << bits) - 1)
    return np.rint(np.clip(values.astype(np.float32) / full, 0, 1) * 255).astype(np.uint8)


def _palette(stored: TiffPage, kind: str) -> np.ndarray:
    """uint8 (N, 3): three runs of 16-bit colours; old programs write 8-bit ones."""
    count = 1 << stored.bitspersample
    colours = stored.colormap
    if kind != "u" or colours is None or colours.shape != (3, count):
        raise refuse("unreadable", f"expected 3 × {count} colours, got others")
    return (colours.T if colours.max() < 256 else colours.T >> 8).astype(np.uint8)


def _to_rgb(samples: np.ndarray, kind: int, stored: TiffPage, top: int) -> tuple[np.ndarray, int]:
    """(H, W, 3) red, green and blue, and the value of white."""
    converted = stored.compression in (JPEG, WEBP) and stored.shaped[0] == 1
    if kind == RGB or (kind == YCBCR and converted):
        return samples, top
    if top != 255:
        raise refuse("unsupported", f"expected YCbCr or CMYK of 8 bits, got {stored.bitspersample}")
    if kind == INKS:
        if stored.tags.valueof(INK_SET, default=1) != 1:
            raise refuse("unsupported", "expected CMYK inks, got others")
        mode = "CMYK"
    else:
        if stored.subsampling != (1, 1):
            raise refuse("unsupported", "expected full YCbCr, got subsampled without JPEG")
        mode = "YCbCr"
    packed = np.ascontiguousarray(samples).tobytes()
    return np.array(PillowImage.frombytes(mode, samples.shape[1::-1], packed).convert("RGB")), top
