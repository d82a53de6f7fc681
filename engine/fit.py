"""An invertible way from an image of any shape into a model's square input, and back.

``squash`` uses every input pixel and changes the aspect ratio; ``pad`` keeps the aspect
ratio and centres the image on its own mean colour. Neither crops, so every saliency
cell has exact image pixels (the published centre crop has not: its maps are stretched
over pixels the model never saw).
"""

from dataclasses import dataclass

import cv2
import numpy as np
from torch import Tensor

from medclipsam.engine.backends.handover import constant
from medclipsam.engine.config import FitMode


@dataclass(frozen=True)
class Fit:
    """Where a source of ``height`` × ``width`` lies in a square of ``side`` pixels."""

    height: int
    width: int
    side: int
    top: int
    left: int
    inner_height: int
    inner_width: int


def make_fit(height: int, width: int, side: int, mode: FitMode) -> Fit:
    """The placement of an (H, W) image in a ``side`` × ``side`` square."""
    if mode == "squash":
        return Fit(height, width, side, 0, 0, side, side)
    scale = side / max(height, width)
    inner_height = max(1, round(height * scale))
    inner_width = max(1, round(width * scale))
    top, left = (side - inner_height) // 2, (side - inner_width) // 2
    return Fit(height, width, side, top, left, inner_height, inner_width)


def fit_image(rgb: np.ndarray, fit: Fit) -> np.ndarray:
    """uint8 (H, W, 3) → uint8 (side, side, 3); area averaging where it shrinks, cubic else."""
    shrinks = fit.inner_height < fit.height or fit.inner_width < fit.width
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    inner = cv2.resize(
        np.ascontiguousarray(rgb), (fit.inner_width, fit.inner_height), interpolation=method
    )
    if (fit.inner_height, fit.inner_width) == (fit.side, fit.side):
        return inner
    colour = rgb.reshape(-1, 3).mean(0).round().astype(np.uint8)
    square = np.empty((fit.side, fit.side, 3), np.uint8)
    square[:] = colour
    square[fit.top : fit.top + fit.inner_height, fit.left : fit.left + fit.inner_width] = inner
    return square


def unfit_map(cells: np.ndarray, fit: Fit) -> np.ndarray:
    """float32 (h, w) over the square → float32 (H, W) over the source, bilinear.

    Cells and pixels are areas: source pixel (i, j) reads the map at its own centre.
    """
    h, w = cells.shape
    y = (np.arange(fit.height, dtype=np.float32) + 0.5) / fit.height * fit.inner_height + fit.top
    x = (np.arange(fit.width, dtype=np.float32) + 0.5) / fit.width * fit.inner_width + fit.left
    rows = y * np.float32(h / fit.side) - 0.5
    columns = x * np.float32(w / fit.side) - 0.5
    grid = np.meshgrid(columns, rows)
    return cv2.remap(
        np.ascontiguousarray(cells, np.float32),
        grid[0].astype(np.float32),
        grid[1].astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )


def normalise_rgb(rgb: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(B, 3, S, S) in [0, 1] → the model's normalised input."""
    middle, spread = (constant(values, rgb.device)[:, None, None] for values in (mean, std))
    return (rgb - middle) / spread
