"""Frames in, masks of a task model out. Refuses to know files.

encode_image (prepare) → compute_saliency (infer) → refine_mask (threshold)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medclipsam.engine.backends.handover import fetch, upload
from medclipsam.engine.boxes import extract_boxes
from medclipsam.engine.errors import BackendError
from medclipsam.engine.fit import Fit, fit_image, make_fit, normalise_rgb, unfit_map
from medclipsam.engine.presence import BELOW_THRESHOLD
from medclipsam.engine.quality import border_contact
from medclipsam.engine.types import Segmentation
from medclipsam.engine.unet.graph import Graph
from medclipsam.engine.unet.model import UnetConfig

BOXES = 16  # largest components of a mask that get one; a noisy mask may have thousands
LARGEST = 80.0  # logits beyond it overflow float32's exponential


@dataclass(frozen=True)
class UnetPipeline:
    """All stages of a task model on one device.

    Images travel in batches of exactly ``batch``, the last one padded, so that results do not
    depend on how the work was grouped.
    """

    graph: Graph
    config: UnetConfig
    device: torch.device
    batch: int

    def segment(self, rgb: np.ndarray) -> dict[str, Segmentation]:
        """uint8 (H, W, 3) → label → what was found."""
        return self.threshold(rgb, self.infer([self.prepare(rgb)])[0])

    def prepare(self, rgb: np.ndarray) -> Tensor:
        """uint8 (H, W, 3) → normalised float32 (3, S, S)."""
        square = torch.from_numpy(fit_image(rgb, self._fit(rgb)))
        pixels = square.permute(2, 0, 1)[None].float() / 255
        return normalise_rgb(pixels, self.config.mean, self.config.std)[0]

    def run(self, prepared: Sequence[Tensor]) -> Tensor:
        """At most ``batch`` prepared images → float32 (B, L, S, S) logits on the device."""
        padding = [torch.zeros_like(prepared[0])] * (self.batch - len(prepared))
        pixels = upload(torch.stack([*prepared, *padding]), self.device)
        return self.graph(pixels)[: len(prepared)]

    def infer(self, prepared: Sequence[Tensor]) -> list[np.ndarray]:
        """Prepared images, as many as there are → float32 (L, S, S) logits of each.

        Raises:
            BackendError: the network answers with numbers that are not finite.
        """
        out: list[np.ndarray] = []
        for start in range(0, len(prepared), self.batch):
            (logits,) = fetch(self.device, self.run(prepared[start : start + self.batch]))
            out += require_finite(logits)
        return out

    def threshold(self, rgb: np.ndarray, logits: np.ndarray) -> dict[str, Segmentation]:
        """float32 (L, S, S) logits of an image → its masks on its own pixels."""
        fit = self._fit(rgb)
        found = {}
        wanted = zip(self.config.labels, self.config.thresholds, logits, strict=True)
        for label, threshold, cells in wanted:
            probability = np.clip(unfit_map(sigmoid(cells), fit), 0, 1)
            found[label] = to_segmentation(probability, probability > np.float32(threshold))
        return found

    def _fit(self, rgb: np.ndarray) -> Fit:
        return make_fit(rgb.shape[0], rgb.shape[1], self.config.image_size, self.config.fit)


def require_finite(logits: Tensor) -> list[np.ndarray]:
    """Logits (B, L, S, S) on the CPU, of each image.

    Raises:
        BackendError: some are not finite.
    """
    if not logits.isfinite().all():
        raise BackendError(
            "the task model answers with numbers that are not finite; use --precision fp32, "
            "or train it again with a lower learning rate"
        )
    return list(logits.numpy())


def to_segmentation(probability: np.ndarray, mask: np.ndarray) -> Segmentation:
    """One (frame, label): float32 (H, W) probability and its bool (H, W) mask."""
    maps: dict[str, Any] = {"saliency": probability, "crf_mask": mask}
    if not mask.any():
        none = np.empty((0, 4), np.int32)
        return Segmentation("absent", mask, none, reason=BELOW_THRESHOLD, **maps)
    expected = expected_iou(probability, mask)
    return Segmentation(
        "done",
        mask,
        extract_boxes(mask, "top-k", BOXES),
        predicted_iou=expected,
        area_share=float(mask.mean()),
        border=border_contact(mask),
        confidence=expected,
        **maps,
    )


def expected_iou(probability: np.ndarray, mask: np.ndarray) -> float:
    """IoU of a mask with the truth, if each pixel is true with its own probability:

        Σ p over the mask / (|mask| + Σ p outside of it),

    the ratio of the expected intersection and the expected union. As good as the
    probabilities are calibrated; those of a network are usually too sure.
    """
    inside = float(probability[mask].sum(dtype=np.float64))
    total = float(probability.sum(dtype=np.float64))
    return inside / (int(mask.sum()) + total - inside)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """float32 logits → probabilities; on one thread, whose rounding knows no neighbours."""
    one = np.float32(1)
    return one / (one + np.exp(-np.clip(logits, -LARGEST, LARGEST)))
