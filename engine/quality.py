"""How far a mask may be trusted: figures of one mask, and one confidence made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from medclipsam.engine.errors import ConfigError

CAP = 6.0  # logits of figures: 0.9975, beyond which an estimate of SAM says no more


@dataclass(frozen=True)
class ConfidenceConfig:
    """How figures of a mask become its confidence.

    Calibrated (``scale`` above 0), it is a logistic model: the probability that the mask
    reaches a DSC of 0.7 with the target, among images like those of the calibration,

        σ(bias + Σ weight · x),

    with x the logits of predicted IoU, stability and agreement and the contrast over
    ``scale``. Uncalibrated, it is the geometric mean of predicted IoU, stability and
    agreement: an order, not a probability.

    Attributes:
        bias, predicted_iou, stability, agreement, contrast: of the logistic model.
        scale: the contrast that counts as one; 0 says that nothing was calibrated.
    """

    bias: float = 0.0
    predicted_iou: float = 0.0
    stability: float = 0.0
    agreement: float = 0.0
    contrast: float = 0.0
    scale: float = 0.0

    def __post_init__(self) -> None:
        values = vars(self).values()
        if not all(math.isfinite(value) for value in values) or self.scale < 0:
            raise ConfigError(f"confidence takes finite numbers and a scale ≥ 0, got {self}")

    def of(self, figures: Mapping[str, float]) -> float:
        """Confidence in [0, 1] of a mask with ``figures``, see ``Segment``."""
        if not self.scale:
            shares = (figures[name] for name in ("predicted_iou", "stability", "agreement"))
            return math.prod(shares) ** (1 / 3)
        weights = (self.predicted_iou, self.stability, self.agreement, self.contrast)
        values = features(figures, self.scale)
        total = self.bias + sum(w * x for w, x in zip(weights, values, strict=True))
        return 1 / (1 + math.exp(-max(-60.0, min(60.0, total))))


def features(figures: Mapping[str, float], scale: float) -> tuple[float, ...]:
    """What the logistic model sees: three capped logits and the scaled contrast (0 if NaN)."""
    contrast = figures["contrast"]
    return (
        *(logit(figures[name]) for name in ("predicted_iou", "stability", "agreement")),
        0.0 if math.isnan(contrast) else contrast / scale,
    )


def logit(share: float) -> float:
    """log(p / (1 − p)), at most 6 from 0."""
    if share <= 0 or share >= 1:
        return math.copysign(CAP, share - 0.5)
    return max(-CAP, min(CAP, math.log(share / (1 - share))))


def agreement(crf_mask: np.ndarray, mask: np.ndarray) -> float:
    """DSC of the refined saliency and SAM's mask, both bool (H, W); 0 where both are empty."""
    total = int(crf_mask.sum()) + int(mask.sum())
    return 2 * int((crf_mask & mask).sum()) / total if total else 0.0


def border_contact(mask: np.ndarray) -> float:
    """Share in [0, 1] of the picture's outermost pixels that a bool (H, W) mask covers.

    A target cut off by the picture's edge, or a mask of background, has a high one.
    """
    height, width = mask.shape
    if min(height, width) == 1:
        return float(mask.mean())
    touched = mask[0].sum() + mask[-1].sum() + mask[1:-1, 0].sum() + mask[1:-1, -1].sum()
    return float(touched) / (2 * (height + width) - 4)
