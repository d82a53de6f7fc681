"""Phantoms by the thousand, drawn once by several processes and kept as uint8 arrays."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from medclipsam.train.phantoms import make_phantom


@dataclass(frozen=True)
class PhantomSet:
    """Square phantoms: ``images`` uint8 (N, S, S), captions, and per image its target masks.

    ``masks[n]`` maps target → bool (S, S).
    """

    images: np.ndarray
    captions: list[str]
    masks: list[dict[str, np.ndarray]]


def draw_phantoms(seeds: Iterable[int], side: int, workers: int) -> PhantomSet:
    """Phantoms of ``seeds`` squashed to ``side`` × ``side``, in the order of the seeds."""
    seeds = list(seeds)
    with multiprocessing.get_context("spawn").Pool(workers, initializer=_one_thread) as pool:
        drawn = pool.map(partial(_draw, side=side), seeds, chunksize=64)
    images, captions, masks = zip(*drawn, strict=True)
    return PhantomSet(np.stack(images), list(captions), list(masks))


def _one_thread() -> None:
    cv2.setNumThreads(1)


def _draw(seed: int, side: int) -> tuple[np.ndarray, str, dict[str, np.ndarray]]:
    phantom = make_phantom(seed)
    pixels = (phantom.pixels * 255 + 0.5).astype(np.uint8)
    image = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)
    masks = {
        target: cv2.resize(mask.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)
        > 0.5
        for target, mask in phantom.masks.items()
    }
    return image, phantom.caption, masks


def union_mask(masks: dict[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """bool array of ``shape``: where any target lies."""
    union = np.zeros(shape, bool)
    for mask in masks.values():
        union |= mask
    return union
