"""Labelled items as squares that a task model learns from: every frame is a sample.

Samples lie in an unnamed file that the system pages in and out, so that their number is
bounded by the disk, not by memory.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from medclipsam.engine.config import FitMode
from medclipsam.engine.fit import Fit, fit_image, make_fit
from medclipsam.train.patients import join_groups
from medclipsam.train.spool import Spool
from medclipsam.train.unet.masks import LabelledItem


@dataclass(frozen=True)
class TaskData:
    """N samples for L labels, in a fixed order.

    Attributes:
        images: uint8 (N, S, S, 3).
        masks: uint8 (N, L, S, S), 0 or 1.
        known: bool (N, L); masks are 0 where nothing is known of a label.
        confidence: float32 (N, L) in [0, 1].
        groups: of each sample, see ``join_groups``.
    """

    images: np.ndarray
    masks: np.ndarray
    known: np.ndarray
    confidence: np.ndarray
    groups: list[str]

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def present(self) -> np.ndarray:
        """bool (N, L), where a mask is not empty."""
        rows = [mask.any((1, 2)) for mask in self.masks]
        return np.array(rows, bool).reshape(self.known.shape)


def gather(
    items: Iterable[LabelledItem],
    labels: Sequence[str],
    side: int,
    fit: FitMode,
    folder: Path | None = None,
) -> TaskData:
    """Fit every frame of every item into a ``side`` × ``side`` square.

    Args:
        folder: on whose file system the samples lie; the system's place for temporary files
            by default.

    Raises:
        OutputError: the disk is full.
    """
    images, masks = Spool((side, side, 3), folder), Spool((len(labels), side, side), folder)
    known, confidence, owners, counts = [], [], [], []
    for item in items:
        height, width = item.frames.shape[1:3]
        place = make_fit(height, width, side, fit)
        for n, frame in enumerate(item.frames):
            images.add(fit_image(frame, place))
            masks.add(_fit_labels(item, n, labels, place))
        counts.append(len(item.frames))
        owners.append((item.patient, item.digest))
        known.append([label in item.masks for label in labels])
        confidence.append([item.confidence.get(label, 0.0) for label in labels])
    groups = join_groups(owners)
    shape = (-1, len(labels))
    return TaskData(
        images.close(),
        masks.close(),
        np.repeat(np.array(known, bool).reshape(shape), counts, 0),
        np.repeat(np.array(confidence, np.float32).reshape(shape), counts, 0),
        [group for group, count in zip(groups, counts, strict=True) for _ in range(count)],
    )


def _fit_labels(item: LabelledItem, n: int, labels: Sequence[str], place: Fit) -> np.ndarray:
    nothing = np.zeros((place.side, place.side), np.uint8)
    found = [fit_mask(item.masks[x][n], place) if x in item.masks else nothing for x in labels]
    return np.stack(found)


def fit_mask(mask: np.ndarray, fit: Fit) -> np.ndarray:
    """bool (H, W) → uint8 0/1 (side, side): squares of which the mask covers half or more.

    A mask too small to cover half of any keeps those that it covers most of.
    """
    shrinks = fit.inner_height < fit.height or fit.inner_width < fit.width
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    size = (fit.inner_width, fit.inner_height)
    share = cv2.resize(mask.astype(np.float32), size, interpolation=method)
    square = np.zeros((fit.side, fit.side), np.uint8)
    if mask.any():
        inner = share >= min(0.5, share.max())
        square[fit.top : fit.top + size[1], fit.left : fit.left + size[0]] = inner
    return square
