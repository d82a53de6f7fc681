"""Archives of phantoms of which a given share shows what is asked for."""

from dataclasses import dataclass
from pathlib import Path

import cv2

from medclipsam.benchmarks.rivals.run_jobs import PROMPTS
from medclipsam.train.phantoms.phantoms import MODALITIES, TARGETS, Phantom, make_phantom

FIRST_SEED = 6_000_000
MIXED_SEED = 4_000_000


@dataclass
class Archive:
    """Phantoms as PNG files.

    Attributes:
        share: percent of the images that show the first target.
    """

    folder: Path
    share: int
    phantoms: list[Phantom]


def write_archive(folder: Path, share: int, count: int) -> Archive:
    """``count`` images; those with a target lie evenly among the others."""
    folder.mkdir(parents=True)
    first, second = PROMPTS
    phantoms, shown = [], 0
    for n in range(count):
        targets: list[str] = []
        if (n + 1) * share // 100 > n * share // 100:
            targets, shown = ([first, second] if shown % 2 else [first]), shown + 1
        phantom = make_phantom(FIRST_SEED + 1000 * share + n, "ultrasound", targets)
        cv2.imwrite(str(folder / f"{n:04}.png"), phantom.grey)
        phantoms.append(phantom)
    return Archive(folder, share, phantoms)


def write_phantoms(folder: Path, count: int, side: int) -> None:
    """``count`` phantoms of all modalities, with each target present in half of them."""
    folder.mkdir(parents=True)
    for n in range(count):
        modality = MODALITIES[n % len(MODALITIES)]
        a, b = TARGETS[modality]
        targets = ((a,), (a, b), (b,), ())[n // len(MODALITIES) % 4]
        phantom = make_phantom(MIXED_SEED + n, modality, targets, (side, side))
        cv2.imwrite(str(folder / f"{n:05d}.png"), phantom.grey)
