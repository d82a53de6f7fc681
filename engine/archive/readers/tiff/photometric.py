"""What the samples of a TIFF page mean: greys, colours, alpha, palette indices or channels."""

from __future__ import annotations

import numpy as np
from PIL import Image as PillowImage

from medclipsam.engine.archive.limits import refuse
from medclipsam.engine.archive.readers.pages import Page
from medclipsam.engine.archive.readers.tiff.directory import Directory
from medclipsam.engine.archive.readers.tiff.segments import JPEG, WEBP, Layout

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, INDEXED, INKS, YCBCR = 0, 1, 2, 3, 5, 6
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


def to_pages(samples: np.ndarray, directory: Directory, layout: Layout) -> list[Page]:
    """The page or, of several channels, the pages of (H, W, S) samples."""
    kind = directory.number("PhotometricInterpretation")
    shallow = layout.dtype.kind == "u" and layout.bits <= 8
    top = (1 << layout.bits) - 1 if shallow else 0
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
    place, premultiplied = _alpha_place(directory, count, colours)
    alpha = None if place is None else _to_alpha(samples[..., place], layout)
    if kind == INDEXED:
        return [Page(samples[..., 0], top, _palette(directory, layout), alpha)]
    if place is not None and layout.planes == 4 and _is_stack_of_four(directory):
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
        values, top = _to_rgb(samples[..., :colours], kind, directory, layout, top)
        return [Page(values, top, None, alpha, premultiplied)]
    return [
        Page(samples[..., channel], top, None, alpha, premultiplied, kind == WHITE_IS_ZERO)
        for channel in range(count)
        if channel != place
    ]


def _alpha_place(directory: Directory, samples: int, colours: int) -> tuple[int | None, bool]:
    """Which sample is alpha, and whether colours have been multiplied by it."""
    extra = directory.numbers("ExtraSamples")
    if not extra and colours == 3 and samples == 4:
        return 3, False  # colour and one sample more, without a word: alpha
    for place, meaning in enumerate(extra, start=colours):
        if meaning in (ASSOCIATED, UNASSOCIATED) and place < samples:
            return place, meaning == ASSOCIATED
    return None, False


def _is_stack_of_four(directory: Directory) -> bool:
    """Whether tifffile wrote an array (4, H, W): as a stack of four it gets the same tags."""
    rows, columns = directory.number("ImageLength"), directory.number("ImageWidth")
    return directory.text("ImageDescription").startswith(f'{{"shape": [4, {rows}, {columns}]')


def _to_alpha(values: np.ndarray, layout: Layout) -> np.ndarray:
    """uint8 (H, W) of an alpha sample of any depth."""
    full = 1.0 if layout.dtype.kind == "f" else float((1 << layout.bits) - 1)
    return np.rint(np.clip(values.astype(np.float32) / full, 0, 1) * 255).astype(np.uint8)


def _palette(directory: Directory, layout: Layout) -> np.ndarray:
    """uint8 (N, 3): three runs of 16-bit colours; old programs write 8-bit ones."""
    colours = np.array(directory.numbers("ColorMap"), np.int64)
    if layout.dtype.kind != "u" or len(colours) != 3 << layout.bits:
        raise refuse("unreadable", f"expected 3 × {1 << layout.bits} colours, got {len(colours)}")
    table = colours.reshape(3, -1).T
    return (table if table.max() < 256 else table >> 8).astype(np.uint8)


def _to_rgb(
    samples: np.ndarray, kind: int, directory: Directory, layout: Layout, top: int
) -> tuple[np.ndarray, int]:
    """(H, W, 3) red, green and blue, and the value of white."""
    if kind == RGB or (kind == YCBCR and layout.codec in (JPEG, WEBP)):
        return samples, top
    if top != 255:
        raise refuse("unsupported", f"expected YCbCr or CMYK of 8 bits, got {layout.bits}")
    if kind == INKS:
        if directory.number("InkSet", 1) != 1:
            raise refuse("unsupported", "expected CMYK inks, got others")
        mode = "CMYK"
    else:
        if directory.numbers("YCbCrSubSampling", 2, 2) != (1, 1):
            raise refuse("unsupported", "expected full YCbCr, got subsampled without JPEG")
        mode = "YCbCr"
    rows, columns = layout.size
    packed = np.ascontiguousarray(samples).tobytes()
    return np.array(PillowImage.frombytes(mode, (columns, rows), packed).convert("RGB")), top
