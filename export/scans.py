"""Pictures to compare on where the user gives none: bodies with tissue, spots and speckle.

They show no anatomy; they only have to give both sides the same varied input. Real images, with
``--images``, judge better.
"""

from pathlib import Path

import cv2
import numpy as np

from medclipsam.engine.archive import Decoders, open_archive
from medclipsam.engine.errors import ConfigError, InputError

SIZES = ((160, 200), (256, 192), (224, 224))
PROMPTS: dict[str, tuple[str, ...]] = {
    "mass": ("breast ultrasound showing a mass",),
    "tumor": ("brain mri showing a tumor",),
    "nodule": ("chest x-ray showing a nodule",),
}


def draw_scans(count: int = 6) -> list[np.ndarray]:
    """uint8 (H, W, 3) grey pictures of ``SIZES``; the same ones every time."""
    return [_draw(np.random.default_rng(n), SIZES[n % len(SIZES)], n) for n in range(count)]


def _draw(rng: np.random.Generator, size: tuple[int, int], n: int) -> np.ndarray:
    height, width = size
    y, x = np.mgrid[:height, :width].astype(np.float32)
    y, x = y / height - 0.5, x / width - 0.5
    body = 1 / (1 + np.exp(40 * (np.hypot(x / 0.46, y / 0.46) - 1)))
    tissue = cv2.GaussianBlur(rng.standard_normal(size).astype(np.float32), (0, 0), height / 16)
    picture = body * (0.45 + 0.12 * tissue / tissue.std())
    for sign in (1, -1)[: 1 + n % 2]:
        at, radius = rng.uniform(-0.22, 0.22, 2), rng.uniform(0.06, 0.14)
        distance = np.hypot((x - at[0]) / rng.uniform(0.8, 1.4), y - at[1])
        picture = picture + 0.45 * sign * body / (1 + np.exp((distance / radius - 1) / 0.08))
    picture = picture * (1 + 0.15 * rng.standard_normal(size)) + 0.02 * rng.standard_normal(size)
    grey = (255 * np.clip(cv2.GaussianBlur(picture, (0, 0), 0.8), 0, 1)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, 2)


def read_scans(folder: Path) -> list[np.ndarray]:
    """The first frame of every image below ``folder``: uint8 (H, W, 3).

    Raises:
        ConfigError: there is none, or one cannot be read.
    """
    found = []
    with Decoders(1) as decoders:
        for entry in open_archive(folder):
            try:
                found.append(np.ascontiguousarray(decoders.decode(entry).frames[0]))
            except InputError as exc:
                raise ConfigError(
                    f"{entry.ref.path} of {folder} cannot be compared on: {exc}"
                ) from exc
    if not found:
        raise ConfigError(f"{folder} holds no images")
    return found
