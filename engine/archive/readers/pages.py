"""Pages of a raster file as they are stored, and how they are displayed.

Refuses to know file formats: every reader of one gives ``Page``s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medclipsam.engine.archive.limits import refuse
from medclipsam.engine.archive.readers.window import check_finite, over_black, robust_window


@dataclass(frozen=True)
class Page:
    """One page of a raster file.

    Attributes:
        values: (H, W) or (H, W, 3), any real dtype, as stored; or indices of a palette.
        top: the value shown as white where values have 8 bits or fewer, such as 1, 15 or
            255; 0 where deeper values are shown through a window.
        palette: uint8 (N, 3), the colour of each index, where there is one.
        alpha: uint8 (H, W), 0 where the page is transparent, where it tells.
        premultiplied: whether the values have been multiplied by alpha already.
        white_is_zero: whether larger values are darker (TIFF 6.0, WhiteIsZero).
    """

    values: np.ndarray
    top: int
    palette: np.ndarray | None = None
    alpha: np.ndarray | None = None
    premultiplied: bool = False
    white_is_zero: bool = False


def show_pages(pages: Sequence[Page]) -> np.ndarray:
    """uint8 (F, H, W) or (F, H, W, 3) as displayed.

    Values of 8 bits or fewer are stretched to 0–255. Deeper ones pass one robust window
    over all pages and colours. Alpha is composited over black behind it.

    Raises:
        InputError: pages differ in size or kind, or hold NaN or infinity.
    """
    _check_alike(pages)
    first = pages[0]
    shown = [page.values if page.palette is None else _look_up(page) for page in pages]
    values = _stack(shown)
    if first.palette is None:
        if first.top == 0:
            check_finite(values)
            values = robust_window(values)
        elif first.top != 255:
            values = (np.arange(first.top + 1) * 255 // first.top).astype(np.uint8)[values]
        if first.white_is_zero:
            values = 255 - values
    if first.alpha is not None and not first.premultiplied:
        alpha = _stack([page.alpha for page in pages])[..., None]
        grey = values.ndim == 3
        values = over_black(np.concatenate([values[..., None] if grey else values, alpha], -1))
        return values[..., 0] if grey else values
    return values


def stored_pages(pages: Sequence[Page]) -> np.ndarray:
    """(F, H, W) or (F, H, W, 3) as stored, larger for brighter, 0 where transparent.

    Palette indices are taken as they are. Values of a WhiteIsZero file are counted from
    the black end of their range, so that 0 is black in every file.

    Raises:
        InputError: pages differ in size or kind, or are WhiteIsZero and have no black end.
    """
    _check_alike(pages)
    first = pages[0]
    values = _stack([page.values for page in pages])
    if first.white_is_zero:
        if values.dtype.kind != "u":
            raise refuse(
                "unsupported",
                "expected stored values above a black of 0, got signed or float values whose "
                "zero is white; save them as BlackIsZero",
            )
        values = (first.top or np.iinfo(values.dtype).max) - values
    if first.alpha is not None:
        opaque = _stack([page.alpha for page in pages]) > 0
        values = np.where(opaque if values.ndim == 3 else opaque[..., None], values, 0)
    return values


def _check_alike(pages: Sequence[Page]) -> None:
    kinds = {
        (
            page.values.shape,
            page.values.dtype,
            page.top,
            page.palette is None,
            page.alpha is None,
            page.premultiplied,
            page.white_is_zero,
        )
        for page in pages
    }
    if len(kinds) > 1:
        raise refuse(
            "unsupported",
            "expected pages of one size and kind, got different ones; store them as separate files",
        )


def _look_up(page: Page) -> np.ndarray:
    assert page.palette is not None
    if int(page.values.max()) >= len(page.palette):
        raise refuse(
            "unreadable",
            f"expected palette indices below {len(page.palette)}, got {int(page.values.max())}",
        )
    return page.palette[page.values]


def _stack(arrays: Sequence[np.ndarray | None]) -> np.ndarray:
    known = [array for array in arrays if array is not None]
    return known[0][None] if len(known) == 1 else np.stack(known)
