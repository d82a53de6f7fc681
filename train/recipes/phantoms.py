"""Data of a recipe that needs no download: phantoms of one modality with true masks.

DATA/train/images/0000.png   DATA/train/masks/LESION/0000.png
DATA/test/…                  of those, every image shows the lesion
"""

from pathlib import Path

import cv2
import numpy as np

from medclipsam.engine.durable import write_durable
from medclipsam.train.phantoms.phantoms import TARGETS, make_phantom
from medclipsam.train.recipes.recipe import Phantoms

FIRST = {"train": 5_000_000, "test": 5_500_000}  # seeds that nothing else is made of


def write_phantoms(data: Path, phantoms: Phantoms, limit: int = 0) -> None:
    """Draw those that are not there yet; the same ones every time.

    Of the scans to learn from, a quarter each shows the lesion, both targets of the modality,
    the other target and none.

    Args:
        limit: of each side, at most; 0 for no limit.

    Raises:
        OutputError: they cannot be written.
    """
    lesion, other = TARGETS[phantoms.modality]
    four = [(lesion,), (lesion, other), (other,), ()]
    for split, count, shown in (("train", phantoms.train, four), ("test", phantoms.test, four[:2])):
        for n in range(min(count, limit or count)):
            path = data / split / "images" / f"{n:04d}.png"
            mask = data / split / "masks" / lesion / path.name
            if not (path.is_file() and mask.is_file()):
                drawn = make_phantom(FIRST[split] + n, phantoms.modality, shown[n % len(shown)])
                white = drawn.mask(lesion) * np.uint8(255)
                for file, pixels in ((mask, white), (path, drawn.grey)):
                    write_durable(file, cv2.imencode(".png", pixels)[1].tobytes())
