"""Phantoms on disk, as trainings take them: images, masks, captions.

FOLDER/images/000000.png           as scanned
FOLDER/masks/TARGET/000000.png     true masks of those that hold the target
FOLDER/spare/000000.png            where any target is
FOLDER/pairs.csv                   image, caption, spare
"""

import csv
import io
import multiprocessing
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from medclipsam.engine.durable import write_durable
from medclipsam.train.phantoms.phantoms import make_phantom

TABLE, IMAGES, MASKS, SPARE = "pairs.csv", "images", "masks", "spare"


def write_phantom_pairs(folder: Path, seeds: Iterable[int], workers: int) -> Path:
    """Draw the phantoms of ``seeds`` into ``folder``, the table last; returns its path.

    Raises:
        OutputError: they cannot be written.
    """
    for name in (IMAGES, SPARE):
        (folder / name).mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(workers, initializer=_one_thread) as pool:
        captions = pool.map(partial(_write, folder=folder), seeds, chunksize=64)
    table = io.StringIO()
    rows = [(f"{IMAGES}/{name}", caption, f"{SPARE}/{name}") for name, caption in captions]
    csv.writer(table).writerows([("image", "caption", "spare"), *rows])
    write_durable(folder / TABLE, table.getvalue().encode())
    return folder / TABLE


def _one_thread() -> None:
    cv2.setNumThreads(1)


def _write(seed: int, folder: Path) -> tuple[str, str]:
    """Name and caption of one phantom."""
    phantom = make_phantom(seed)
    name = f"{seed:07d}.png"
    _save(folder / IMAGES / name, phantom.grey)
    union = np.zeros(phantom.pixels.shape, bool)
    for target, mask in phantom.masks.items():
        union |= mask
        if mask.any():
            _save(folder / MASKS / target / name, mask.astype(np.uint8) * 255)
    _save(folder / SPARE / name, union.astype(np.uint8) * 255)
    return name, phantom.caption


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
