"""Labelled items as squares that a task model learns from: every frame is a sample.

Samples lie in an unnamed file that the system pages in and out, so that their number is
bounded by the disk, not by memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import cv2
import numpy as np

from medclipsam.engine.errors import OutputError
from medclipsam.engine.fit import Fit, FitMode, fit_image, make_fit
from medclipsam.train.patients import join_groups
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


class Spool:
    """An array that grows row by row in a file without a name.

    Args:
        shape: of a row of uint8.
        folder: on whose file system.
    """

    def __init__(self, shape: tuple[int, ...], folder: Path | None = None):
        self._shape, self._rows = shape, 0
        try:
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        except OSError as exc:
            raise self._failure(exc) from exc

    def add(self, row: np.ndarray) -> None:
        """Raises OutputError where the disk is full."""
        try:
            self._file.write(np.ascontiguousarray(row, np.uint8).tobytes())
        except OSError as exc:
            raise self._failure(exc) from exc
        self._rows += 1

    def close(self) -> np.ndarray:
        """All rows, read-only; the file lives as long as they do."""
        if not self._rows:
            self._file.close()
            return np.zeros((0, *self._shape), np.uint8)
        try:
            self._file.flush()
        except OSError as exc:
            raise self._failure(exc) from exc
        with self._file as file:
            return np.memmap(file, np.uint8, "r", shape=(self._rows, *self._shape))

    def _failure(self, exc: OSError) -> OutputError:
        return OutputError(
            f"cannot store the samples to train on: {exc.strerror}; free space beside the output "
            "folder, or lower --image-size"
        )
