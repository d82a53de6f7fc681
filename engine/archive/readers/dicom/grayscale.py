"""The DICOM greyscale pipeline: stored values → modality values → display.

Refuses to know files and codecs. Written out here, although pydicom has functions of
the same purpose, because those wrap around where a value exceeds the table's integer
type, and scale their result by BitsStored instead of by the window.
"""

import numpy as np
from pydicom.dataset import Dataset

from medclipsam.engine.archive.limits import refuse
from medclipsam.engine.archive.readers.dicom.luts import read_descriptor, read_entries
from medclipsam.engine.archive.readers.window import is_constant, robust_window, scale

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
    signed = stored.dtype.kind == "i"
    for index, frame in enumerate(stored):
        voi = functional(ds, index, "FrameVOILUTSequence")
        transform = functional(ds, index, "PixelValueTransformationSequence")
        for top in range(0, len(frame), CHUNK):
            values = _modality(frame[top : top + CHUNK], transform, signed)
            rows = _voi(values, voi, signed or _rescale(transform)[1] < 0)
            if rows is None:
                return None
            shown[index, top : top + CHUNK] = rows
    return shown


def _voi(values: np.ndarray, voi: Dataset, signed: bool) -> np.ndarray | None:
    """``values`` through a table or window, or None without one that can be used.

    A table that is empty or shorter than it says is passed over, as by pydicom.
    """
    table = _read_lut(voi, "VOILUTSequence", signed)
    if table is not None:
        return scale(look_up(values, *table), 0, float(table[0].max()))
    center, width = read_number(voi, "WindowCenter"), read_number(voi, "WindowWidth")
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
    """(F, H, W) in the order that the modality transformation gives it: as stored, if it rises.

    Where one straight line holds for all frames, its sign is all that a robust window sees.
    """
    signed = stored.dtype.kind == "i"
    transforms = [
        functional(ds, index, "PixelValueTransformationSequence") for index in range(len(stored))
    ]
    tables = [_modality_lut(transform, signed) for transform in transforms]
    lines = {_rescale(transform) for transform in transforms}
    if len(lines) == 1 and not any(tables):
        slope, intercept = lines.pop()
        if (slope, intercept) == (1.0, 0.0):
            return stored
        wide = stored.astype(np.float32 if stored.dtype.itemsize < 4 else np.float64)
        return np.copysign(1, slope) * wide
    values = np.empty(stored.shape, np.float64 if stored.dtype.itemsize > 2 else np.float32)
    for index, transform in enumerate(transforms):
        values[index] = _modality(stored[index], transform, signed)
    return values


def _rescale(transform: Dataset) -> tuple[float, float]:
    """Slope and intercept; a slope of 0 or none is 1."""
    slope, intercept = (read_number(transform, f"Rescale{name}") for name in ("Slope", "Intercept"))
    return (slope if slope else 1.0), (intercept or 0.0)


def _modality(values: np.ndarray, transform: Dataset, signed: bool) -> np.ndarray:
    table = _modality_lut(transform, signed)
    if table is not None:
        return look_up(values, *table)
    slope, intercept = _rescale(transform)
    if (slope, intercept) == (1.0, 0.0):
        return values
    return values * np.float64(slope) + intercept


def look_up(values: np.ndarray, table: np.ndarray, first: int) -> np.ndarray:
    """Map integers through a table from ``first`` on; its ends serve values beyond it."""
    index = np.clip(np.rint(values.astype(np.float64)) - first, 0, len(table) - 1)
    return table[index.astype(np.intp)]


def _modality_lut(transform: Dataset, signed: bool) -> tuple[np.ndarray, int] | None:
    """The table of a modality transformation; None without one, or where a line replaces it."""
    table = _read_lut(transform, "ModalityLUTSequence", signed)
    if table is None and transform.get("ModalityLUTSequence"):
        got = len(transform.ModalityLUTSequence[0].get("LUTData") or ())
        if got and read_number(transform, "RescaleSlope") is None:
            raise refuse("unreadable", f"expected a whole modality LUT, got {got} parts of one")
    return table


def _read_lut(ds: Dataset, sequence: str, signed: bool) -> tuple[np.ndarray, int] | None:
    """The first table of a sequence and the value of its first entry, if it is whole."""
    item = next(iter(ds.get(sequence) or ()), None)
    if item is None or "LUTData" not in item:
        return None
    descriptor = read_descriptor(item.get("LUTDescriptor"), signed)
    if descriptor is None:
        return None
    count, first, bits = descriptor
    table = read_entries(item["LUTData"], count, bits, item.original_encoding[1] is not False)
    return None if len(table) < count or not table.any() else (table, first)


def _not_padding(stored: np.ndarray, ds: Dataset) -> np.ndarray | None:
    """bool (F, H, W), False where a value stands for "no data"; None without padding.

    Its elements are unsigned or signed by whatever VR they were written in.
    """
    limits = [read_number(ds, name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if limits[0] is None:
        return None
    one, other = (limits[0] if limit is None else limit for limit in limits)
    if stored.dtype.kind in "iu":
        span = np.iinfo(stored.dtype)
        one, other = ((value - span.min) % (1 << span.bits) + span.min for value in (one, other))
    low, high = sorted((one, other))
    return (stored < low) | (stored > high)


def functional(ds: Dataset, frame: int, name: str) -> Dataset:
    """The functional group ``name`` of a frame: its own, the shared one, or the object."""
    own = ds.get("PerFrameFunctionalGroupsSequence") or []
    shared = ds.get("SharedFunctionalGroupsSequence") or []
    for group in [*own[frame : frame + 1], *shared[:1]]:
        if group.get(name):
            return group.get(name)[0]
    return ds


def read_number(ds: Dataset, keyword: str) -> float | None:
    """The first number of an element of any multiplicity; None where it holds no finite one.

    Some devices write a decimal comma.
    """
    value = ds.get(keyword)
    if value is not None and not isinstance(value, (str, bytes)) and hasattr(value, "__iter__"):
        value = next(iter(value), None)
    if isinstance(value, str):
        value = value.split("\\")[0].replace(",", ".")
    try:
        number = float("nan" if value is None else value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None
