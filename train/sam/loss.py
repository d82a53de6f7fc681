"""How far SAM's masks are from the true ones, box by box."""

import torch
from torch import Tensor
from torch.nn import functional as F


def mask_loss(
    logits: Tensor, predicted_iou: Tensor, truth: Tensor, inside: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss and soft Dice of each of K boxes, over the pixels of the image alone.

    1 − Dice (smoothed by 1) + mean cross-entropy + squared error of the predicted IoU, which is
    compared with the IoU of the mask at logits above 0.

    Args:
        logits: float (K, S, S).
        predicted_iou: float (K,).
        truth: bool or 0/1 (K, S, S).
        inside: bool or 0/1 (K, S, S), where the square shows the image and not its padding.

    Returns:
        Two tensors (K,); the second carries no gradient.
    """
    truth, inside = truth.float(), inside.float()
    probability = logits.sigmoid() * inside
    overlap = (probability * truth).sum((1, 2))
    dice = (2 * overlap + 1) / (probability.sum((1, 2)) + truth.sum((1, 2)) + 1)
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    entropy = (entropy * inside).sum((1, 2)) / inside.sum((1, 2))
    with torch.no_grad():
        hard = (logits > 0) * inside
        both = (hard * truth).sum((1, 2))
        iou = both / (hard.sum((1, 2)) + truth.sum((1, 2)) - both).clamp_min(1)
    return 1 - dice + entropy + (predicted_iou - iou) ** 2, dice.detach()


def hard_dice(logits: Tensor, truth: Tensor, inside: Tensor) -> Tensor:
    """DSC (K,) of the masks at logits above 0, over the pixels of the image alone."""
    found = (logits > 0) & inside.bool()
    both = (found & truth.bool()).sum((1, 2))
    total = found.sum((1, 2)) + truth.bool().sum((1, 2))
    return torch.where(total > 0, 2 * both / total.clamp_min(1), 1.0)
