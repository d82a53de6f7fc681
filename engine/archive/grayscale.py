"""The DICOM greyscale pipeline: stored values → modality values → display.

Refuses to know files and codecs. Written out here, although pydicom has functions of
the same purpose, because those wrap around where a value exceeds the table's integer
type, and scale their result by BitsStored instead of by the window.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from medclipsam.engine.archive.limits import refuse
from medclipsam.engine.archive.window import is_constant, robust_window, scale

CHUNK = 64  # frames are displayed one by one; rows at a time within a frame


def show_grey(stored: np.ndarray, ds: Dataset) -> np.ndarray:
    """Display (F, H, W) stored values of a MONOCHROME object as uint8.

    The object's own VOI LUT or first window is used, of each frame where they differ.
    Without one, 8-bit values are shown as they are and all others through a robust
    window over all frames, which leaves padding out. The same holds for a window
    that hides everything.
    """
    shown = _show_voi(stored, ds)
    if shown is None or is_constant(shown):
        values = _modality_values(stored, ds)
        if values.dtype == np.uint8 and ds.BitsStored == 8:
            shown = values
        else:
            shown = robust_window(values, _not_padding(stored, ds))
    if ds.PhotometricInterpretation == "MONOCHROME1":
        shown = 255 - shown
    return shown


def _show_voi(stored: np.ndarray, ds: Dataset) -> np.ndarray | None:
    """Every frame through its VOI transformation, or None where one has none."""
    shown = np.empty(stored.shape, np.uint8)
    for index, frame in enumerate(stored):
        voi = functional(ds, index, "FrameVOILUTSequence")
        transform = functional(ds, index, "PixelValueTransformationSequence")
        for top in range(0, len(frame), CHUNK):
            rows = _voi(_modality(frame[top : top + CHUNK], transform), voi)
            if rows is None:
                return None
            shown[index, top : top + CHUNK] = rows
    return shown


def _voi(values: np.ndarray, voi: Dataset) -> np.ndarray | None:
    if voi.get("VOILUTSequence"):
        item = voi.VOILUTSequence[0]
        return scale(look_up(values, item), 0, float(_table(item)[0].max()))
    center, width = _first(voi.get("WindowCenter")), _first(voi.get("WindowWidth"))
    if center is None or width is None:
        return None
    return window(values, center, width, str(voi.get("VOILUTFunction") or "LINEAR").upper())


def window(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray | None:
    """uint8 of ``values`` by DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3; None if ill-defined."""
    if function == "SIGMOID" and width > 0:
        exponent = np.clip(-4 * (values.astype(np.float64) - center) / width, -700, 700)
        return np.rint(255 / (1 + np.exp(exponent))).astype(np.uint8)
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if function in ("LINEAR", "LINEAR_EXACT") and width >= 0:
        if width == 0:
            return np.where(values > center, 255, 0).astype(np.uint8)
        return scale(values, center - width / 2, center + width / 2)
    return None


def _modality_values(stored: np.ndarray, ds: Dataset) -> np.ndarray:
    """(F, H, W) after the modality transformation: as stored where it changes nothing."""
    transforms = [
        functional(ds, index, "PixelValueTransformationSequence") for index in range(len(stored))
    ]
    if not any(_has_modality(transform) for transform in transforms):
        return stored
    values = np.empty(stored.shape, np.float32)
    for index, transform in enumerate(transforms):
        values[index] = _modality(stored[index], transform)
    return values


def _has_modality(transform: Dataset) -> bool:
    if transform.get("ModalityLUTSequence"):
        return True
    slope, intercept = _rescale(transform)
    return (slope, intercept) != (1.0, 0.0)


def _rescale(transform: Dataset) -> tuple[float, float]:
    slope, intercept = (
        _first(transform.get(keyword)) for keyword in ("RescaleSlope", "RescaleIntercept")
    )
    return (slope if slope else 1.0), (intercept or 0.0)


def _modality(values: np.ndarray, transform: Dataset) -> np.ndarray:
    if transform.get("ModalityLUTSequence"):
        return look_up(values, transform.ModalityLUTSequence[0])
    slope, intercept = _rescale(transform)
    if (slope, intercept) == (1.0, 0.0):
        return values
    return values * np.float64(slope) + intercept


def look_up(values: np.ndarray, item: Dataset) -> np.ndarray:
    """Map integers through a Modality or VOI LUT item; its ends serve values beyond it."""
    table, first = _table(item)
    index = np.clip(np.rint(values.astype(np.float64)) - first, 0, len(table) - 1)
    return table[index.astype(np.intp)]


def _table(item: Dataset) -> tuple[np.ndarray, int]:
    """A LUT and the value that its first entry stands for."""
    count, first = int(item.LUTDescriptor[0]) or 1 << 16, int(item.LUTDescriptor[1])
    data = item.LUTData
    if isinstance(data, bytes):
        little = item.original_encoding[1] is not False
        dtype = np.dtype(np.uint8 if len(data) < 2 * count else ("<u2" if little else ">u2"))
        table = np.frombuffer(data, dtype, count=len(data) // dtype.itemsize)
    else:
        table = np.atleast_1d(np.asarray(data)).astype(np.int64) & 0xFFFF
    if len(table) < count:
        raise refuse("unreadable", f"expected a table of {count} entries, got {len(table)}")
    return table[:count], first


def _not_padding(stored: np.ndarray, ds: Dataset) -> np.ndarray | None:
    """bool (F, H, W), False where a value stands for "no data"; None without padding."""
    one = _first(ds.get("PixelPaddingValue"))
    if one is None:
        return None
    other = _first(ds.get("PixelPaddingRangeLimit"))
    low, high = sorted((one, one if other is None else other))
    return (stored < low) | (stored > high)


def functional(ds: Dataset, frame: int, name: str) -> Dataset:
    """The functional group ``name`` of a frame: its own, the shared one, or the object."""
    own = ds.get("PerFrameFunctionalGroupsSequence") or []
    shared = ds.get("SharedFunctionalGroupsSequence") or []
    for group in [*own[frame : frame + 1], *shared[:1]]:
        if group.get(name):
            return group.get(name)[0]
    return ds


def _first(value: Any) -> float | None:
    """The first number of a DICOM value of any multiplicity, or None."""
    if isinstance(value, (str, bytes)) or value is None:
        return None
    number = next(iter(value), None) if hasattr(value, "__iter__") else value
    return None if number is None else float(number)
