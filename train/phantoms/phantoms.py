"""Synthetic scans with true masks: breast ultrasound, brain MRI, chest X-ray.

A phantom is a function of its seed alone. Each modality knows two targets that come
and go independently (mass and cyst, tumor and enlarged ventricles, nodule and
pleural effusion), so that a prompt has something to choose between and something to
miss. They are drawn to be *distinguishable by appearance*, not to be realistic: they
prove that the machinery follows a prompt, never that it works on patients.

Coordinates: ``y`` down and ``x`` right in [-1, 1] over the picture; intensities in
[0, 1]; sizes of targets are fractions of the shorter side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medclipsam.train.phantoms.anatomy import PAINTERS
from medclipsam.train.phantoms.captions import caption

MODALITIES = ("ultrasound", "mri", "xray")
TARGETS = {
    "ultrasound": ("mass", "cyst"),
    "mri": ("tumor", "ventricles"),
    "xray": ("nodule", "effusion"),
}
LESIONS = {"ultrasound": "mass", "mri": "tumor", "xray": "nodule"}
PROMPTS = {
    "mass": "breast ultrasound showing a mass",
    "cyst": "breast ultrasound showing a cyst",
    "tumor": "brain mri showing a tumor",
    "ventricles": "brain mri showing enlarged ventricles",
    "nodule": "chest x-ray showing a nodule",
    "effusion": "chest x-ray showing a pleural effusion",
}
NULL_PROMPTS = ("normal breast ultrasound", "normal brain mri", "normal chest x-ray")

_SIDES = (160, 256)
_PRESENT = (0.6, 0.5)


@dataclass(frozen=True)
class Phantom:
    """One synthetic scan.

    Attributes:
        pixels: float32 (H, W) in [0, 1].
        modality: one of ``MODALITIES``.
        masks: target → bool (H, W), for the targets that are present.
        caption: a sentence that names every target present and, but for a tenth of those
            with a target, the modality.
    """

    pixels: np.ndarray
    modality: str
    masks: dict[str, np.ndarray]
    caption: str

    @property
    def grey(self) -> np.ndarray:
        """uint8 (H, W)."""
        return (self.pixels * 255 + 0.5).astype(np.uint8)

    @property
    def rgb(self) -> np.ndarray:
        """uint8 (H, W, 3), all channels alike."""
        return np.repeat(self.grey[..., None], 3, axis=2)

    def mask(self, target: str) -> np.ndarray:
        """bool (H, W), empty where the target is absent."""
        return self.masks.get(target, np.zeros(self.pixels.shape, bool))


def make_phantom(
    seed: int,
    modality: str | None = None,
    targets: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
) -> Phantom:
    """Draw the phantom of ``seed``.

    Args:
        seed: any non-negative integer.
        modality: one of ``MODALITIES``; by default the seed chooses.
        targets: the targets that are present; by default the seed chooses.
        size: (H, W), each at least 48; by default the seed chooses 160…256 for each.

    Raises:
        ValueError: an unknown modality or target.
    """
    rng = np.random.default_rng([20240321, seed])
    modality = modality or MODALITIES[rng.integers(len(MODALITIES))]
    if modality not in TARGETS:
        raise ValueError(f"unknown modality {modality!r}; choose from {', '.join(MODALITIES)}")
    if targets is None:
        targets = [t for t, p in zip(TARGETS[modality], _PRESENT, strict=True) if rng.random() < p]
    if unknown := set(targets) - set(TARGETS[modality]):
        raise ValueError(f"{modality} has no target {sorted(unknown)}; it has {TARGETS[modality]}")
    if size is None:
        size = (
            int(rng.integers(*_SIDES, endpoint=True)),
            int(rng.integers(*_SIDES, endpoint=True)),
        )
    pixels, masks = PAINTERS[modality](rng, size, tuple(targets))
    told = caption(rng, modality, masks)
    return Phantom(np.clip(pixels, 0, 1).astype(np.float32), modality, masks, told)
