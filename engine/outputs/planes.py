"""Arrays as PNG, multi-page TIFF or NIfTI, whichever suits their source."""

import io

import numpy as np
from PIL import Image as PillowImage

from medclipsam.engine.outputs.volumes import encode_volume
from medclipsam.engine.types import Grid


def encode_planes(frames: np.ndarray, grid: Grid, slope: float = 1.0) -> tuple[str, bytes]:
    """One grey value a pixel, on the grid of the source.

    Args:
        frames: uint8 or uint16 (F, H, W), in the order of the item's frames.
        grid: how these frames lie in the source file.
        slope: what a stored step is worth; only NIfTI keeps it.

    Returns:
        Suffix and content: ``.nii.gz`` for NIfTI sources, ``.png`` for one frame, ``.tif``
        with one page a frame otherwise. Equal input gives equal bytes.
    """
    if grid.kind == "nifti":
        return ".nii.gz", encode_volume(frames, grid, slope)
    if len(frames) == 1:
        return ".png", encode_png(frames[0])
    pages = [PillowImage.fromarray(np.ascontiguousarray(frame)) for frame in frames]
    stream = io.BytesIO()
    pages[0].save(
        stream, "TIFF", save_all=True, append_images=pages[1:], compression="tiff_adobe_deflate"
    )
    return ".tif", stream.getvalue()


def encode_png(picture: np.ndarray) -> bytes:
    """A PNG of uint8 or uint16 (H, W), or of uint8 (H, W, 3)."""
    stream = io.BytesIO()
    PillowImage.fromarray(np.ascontiguousarray(picture)).save(stream, "PNG")
    return stream.getvalue()
