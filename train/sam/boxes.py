"""Boxes around masks, exact or as a detector would draw them."""

import numpy as np


def tight_boxes(masks: np.ndarray) -> np.ndarray:
    """Bounding boxes of bool (K, S, S) masks, none of them empty: float32 (K, 4) XYXY."""
    boxes = np.empty((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
        box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def jitter_boxes(
    rng: np.random.Generator,
    masks: np.ndarray,
    shrink: float,
    grow: float,
    inner: np.ndarray | None = None,
) -> np.ndarray:
    """Bounding boxes with each side moved at random, float32 (K, 4) XYXY.

    Args:
        masks: bool (K, S, S), none of them empty.
        shrink, grow: how far a side moves inwards and outwards at most, as a share of the
            box's width or height.
        inner: (K, 2) rows and columns that the image fills; boxes stay within. By default all.
    """
    boxes = tight_boxes(masks)
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    out = rng.uniform(-shrink, grow, boxes.shape) * sides * (-1, -1, 1, 1)
    limits = np.tile(masks.shape[1:] if inner is None else inner, (1, 2))[:, [1, 0, 3, 2]]
    return np.clip(boxes + out, 0, limits).astype(np.float32)
