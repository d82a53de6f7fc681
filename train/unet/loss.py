"""Dice + binary cross-entropy of masks that overlap, weighted by how far each is trusted."""

import numpy as np
from torch import Tensor
from torch.nn import functional as F

SMOOTH = 1.0  # pixels; an empty mask then has a Dice that falls with what is drawn beside it


def task_loss(logits: Tensor, masks: Tensor, weights: Tensor, known: Tensor) -> Tensor:
    """The mean over the known (sample, label) pairs of

        w · (1 − (2 Σ p t + s) / (Σ p + Σ t + s) + BCE),   p = σ(logit), s = SMOOTH,

    sums over the pixels of the pair, BCE their mean. With equal weights it is MONAI's
    ``DiceCELoss(sigmoid=True, smooth_nr=1, smooth_dr=1)`` of one channel.

    Args:
        logits: (B, L, S, S).
        masks: the same shape, 0 or 1.
        weights: (B, L), of mean 1 over the training set, see ``pair_weights``.
        known: (B, L), 0 or 1.

    Returns:
        A scalar; 0 where nothing is known.
    """
    share = logits.sigmoid()
    both = (share * masks).sum((2, 3))
    total = share.sum((2, 3)) + masks.sum((2, 3))
    dice = 1 - (2 * both + SMOOTH) / (total + SMOOTH)
    cross = F.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean((2, 3))
    return (weights * known * (dice + cross)).sum() / known.sum().clamp_min(1)


def pair_weights(known: np.ndarray, confidence: np.ndarray, by_confidence: bool) -> np.ndarray:
    """float32 (N, L) weights, 0 where unknown and of mean 1 elsewhere, so that weighting
    does not change the size of a step.

    Args:
        known: bool (N, L).
        confidence: float (N, L) in [0, 1].
        by_confidence: in proportion to it, else equal.
    """
    weights = (confidence if by_confidence else np.ones_like(confidence)) * known
    mean = weights[known].mean() if known.any() else 0.0
    if not mean > 0:  # no pair has any confidence: there is no proportion to keep
        weights, mean = known, 1.0
    return (weights / mean).astype(np.float32)
