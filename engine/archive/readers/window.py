"""From stored values to displayed pixels: 8-bit windows, greys and alpha.

Refuses to know file formats. Every array is (F, H, W) or (F, H, W, C), over the
whole item, so that all frames of one item share one window.
"""

import numpy as np

from medclipsam.engine.archive.limits import refuse

LOW, HIGH = 0.5, 99.5  # percentiles shown as black and white
SAMPLE = 1 << 24  # percentiles of more values than this come from an even subset
CHUNK = 1 << 20  # values windowed at a time: bounds float64 temporaries to 8 MiB


def check_values(values: np.ndarray) -> None:
    """Refuse NaN, infinity and items whose pixels are all the same.

    Args:
        values: (F, H, W) or (F, H, W, 3), any real dtype.
    """
    check_finite(values)
    if is_constant(values):
        raise refuse("constant", "expected a picture, got the same value in every pixel")


def check_finite(values: np.ndarray) -> None:
    """Refuse NaN and infinity."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise refuse("non-finite", "expected finite pixel values, got NaN or infinity")


def is_constant(values: np.ndarray) -> bool:
    """Whether all pixels of (F, H, W) or (F, H, W, 3) are equal."""
    first = values[0, 0, 0]
    # A first look at one row spares scanning almost every real picture.
    return bool((values[0, 0] == first).all()) and bool((values == first).all())


def robust_window(values: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Show the 0.5–99.5 percentile range of all pixels as 0–255.

    Where both percentiles coincide (few pixels differ from the rest), the full range
    is shown. Of more than 2²⁴ values an evenly spaced subset stands for all.

    Args:
        values: (F, H, W) or (F, H, W, C), any real dtype, finite.
        valid: bool of that shape, values that count, such as all but DICOM padding.

    Returns:
        uint8 of that shape.
    """
    values = np.ascontiguousarray(values)
    counted = values.reshape(-1) if valid is None or not valid.any() else values[valid]
    sample = counted[:: counted.size // SAMPLE + 1]
    low, high = (float(v) for v in np.percentile(sample, (LOW, HIGH)))
    if low >= high:
        low, high = float(counted.min()), float(counted.max())
    return scale(values, low, high)


def scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8 of ``values``: ``low`` and below as 0, ``high`` and above as 255, linear between."""
    flat = np.ascontiguousarray(values).reshape(-1)
    out = np.empty(flat.size, np.uint8)
    # Halves, because high − low may exceed the largest float64.
    unit = 255.0 / (high / 2 - low / 2) if high > low else 0.0
    for start in range(0, flat.size, CHUNK):
        part = flat[start : start + CHUNK].astype(np.float64)
        part = (part / 2 - low / 2) * unit
        out[start : start + CHUNK] = np.rint(np.clip(part, 0, 255))
    return out.reshape(values.shape)


def over_black(rgba: np.ndarray) -> np.ndarray:
    """Composite uint8 (..., C + 1) with alpha last over black: uint8 (..., C)."""
    colour, alpha = rgba[..., :-1].astype(np.uint16), rgba[..., -1:].astype(np.uint16)
    return ((colour * alpha + 127) // 255).astype(np.uint8)


def as_frames(pixels: np.ndarray) -> np.ndarray:
    """uint8 (F, H, W) or (F, H, W, 3) as frames (F, H, W, 3).

    Grey pictures, also those stored in colour, become a read-only view of one
    channel: one byte a pixel.
    """
    if pixels.ndim == 4:
        red = pixels[..., 0]
        grey = all(np.array_equal(red, pixels[..., channel]) for channel in (1, 2))
        if not grey:
            return pixels
        pixels = np.ascontiguousarray(red)
    return np.broadcast_to(pixels[..., None], (*pixels.shape, 3))
