"""How far a mask may be trusted: figures of one mask, and one confidence made of them."""

import math
from collections.abc import Mapping

import numpy as np

from medclipsam.engine.config import ConfidenceConfig

CAP = 6.0  # logits of figures: 0.9975, beyond which an estimate of SAM says no more


def confidence(figures: Mapping[str, float], config: ConfidenceConfig) -> float:
    """Confidence in [0, 1] of a mask with ``figures``, see ``Segmentation``."""
    if not config.scale:
        shares = (figures[name] for name in ("predicted_iou", "stability", "agreement"))
        return math.prod(shares) ** (1 / 3)
    weights = (config.predicted_iou, config.stability, config.agreement, config.contrast)
    values = features(figures, config.scale)
    total = config.bias + sum(w * x for w, x in zip(weights, values, strict=True))
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
