"""Train a SAM-shaped model to turn box prompts into masks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medclipsam.engine.backends.pytorch import decode_boxes
from medclipsam.train.clip import warmup_cosine


@dataclass(frozen=True)
class SamTraining:
    """How to train; boxes come from a detector that is often loose, so theirs do too."""

    steps: int = 1100
    batch: int = 12
    learning_rate: float = 8e-4
    weight_decay: float = 0.01
    warmup: int = 50
    shrink: float = 0.15
    grow: float = 0.5
    seed: int = 0


def train_sam(
    sam: nn.Module,
    images: np.ndarray,
    masks: np.ndarray,
    source: np.ndarray,
    training: SamTraining,
    log: Callable[[str], None] = print,
) -> None:
    """Fit a ``segment_anything.modeling.Sam`` in place with Dice + cross-entropy.

    The predicted IoU is regressed on the IoU of the mask itself.

    Args:
        sam: the model, with square input of side S.
        images: uint8 (N, S, S) grey pictures.
        masks: bool (M, S, S), none of them empty.
        source: int (M,), the image that each mask belongs to.
        training: see ``SamTraining``; ``shrink`` and ``grow`` bound the random shift of
            each side of a box inwards and outwards, as a share of the box's side.
        log: takes a line of progress every hundred steps.
    """
    torch.manual_seed(training.seed)
    rng = np.random.default_rng(training.seed)
    optimizer = torch.optim.AdamW(
        sam.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, training.warmup, training.steps)
    )
    sam.train()
    started, recent = time.monotonic(), []
    for step in range(training.steps):
        chosen = rng.choice(len(masks), training.batch, replace=False)
        pixels = torch.from_numpy(images[source[chosen]]).float()
        pixels = pixels * torch.empty(len(pixels), 1, 1).uniform_(0.8, 1.2)
        truth = torch.from_numpy(masks[chosen]).float()
        boxes = jitter_boxes(rng, masks[chosen], training.shrink, training.grow)
        logits, predicted_iou = forward_boxes(sam, pixels, torch.from_numpy(boxes))
        loss, dice = mask_loss(logits, predicted_iou, truth)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent.append(dice)
        if (step + 1) % 100 == 0:
            took = time.monotonic() - started
            log(f"sam step {step + 1}/{training.steps} dice {np.mean(recent):.4f} {took:.0f} s")
            recent = []
    sam.eval()


def forward_boxes(sam: nn.Module, pixels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """One box an image: (B, S, S) grey levels 0…255 and (B, 4) XYXY →
    logits (B, S, S) and predicted IoU (B,)."""
    side = pixels.shape[-1]
    rgb = (pixels[:, None].expand(-1, 3, -1, -1) - sam.pixel_mean) / sam.pixel_std  # type: ignore[operator]
    embeddings = sam.image_encoder(rgb)  # type: ignore[operator]
    low, iou = decode_boxes(sam, embeddings, boxes)
    logits = F.interpolate(low[:, None], (side, side), mode="bilinear", align_corners=False)
    return logits[:, 0], iou


def jitter_boxes(
    rng: np.random.Generator, masks: np.ndarray, shrink: float, grow: float
) -> np.ndarray:
    """Bounding boxes of (B, S, S) masks with each side moved at random; float32 (B, 4) XYXY."""
    boxes = np.empty((len(masks), 4), np.float32)
    side = masks.shape[-1]
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
        x0, y0, x1, y1 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
        out = rng.uniform(-shrink, grow, 4) * np.array([x1 - x0, y1 - y0, x1 - x0, y1 - y0])
        box[:] = np.clip([x0 - out[0], y0 - out[1], x1 + out[2], y1 + out[3]], 0, side)
    return boxes


def mask_loss(logits: Tensor, predicted_iou: Tensor, truth: Tensor) -> tuple[Tensor, float]:
    """Dice + cross-entropy + squared error of the predicted IoU, and the mean Dice reached."""
    probability = logits.sigmoid()
    overlap = (probability * truth).sum((1, 2))
    dice = (2 * overlap + 1) / (probability.sum((1, 2)) + truth.sum((1, 2)) + 1)
    with torch.no_grad():
        hard = (logits > 0).float()
        both = (hard * truth).sum((1, 2))
        iou = both / (hard.sum((1, 2)) + truth.sum((1, 2)) - both).clamp_min(1)
    loss = (1 - dice).mean() + F.binary_cross_entropy_with_logits(logits, truth)
    return loss + F.mse_loss(predicted_iou, iou), float(dice.detach().mean())
