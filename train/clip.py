"""Train a BiomedCLIP-shaped model on image–caption pairs with DHN-NCE."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medclipsam.train.losses import dhn_nce


@dataclass(frozen=True)
class ClipTraining:
    """How to train; the defaults are the phantom bundle's, found to fit two CPU cores."""

    steps: int = 2800
    batch: int = 64
    learning_rate: float = 8e-4
    weight_decay: float = 0.1
    warmup: int = 100
    temperature: float = 0.07
    beta: float = 0.15
    clip_norm: float = 1.0
    seed: int = 0


def train_clip(
    model: nn.Module,
    images: np.ndarray,
    spare: np.ndarray,
    tokens: Tensor,
    normalise: Callable[[Tensor], Tensor],
    training: ClipTraining,
    log: Callable[[str], None] = print,
) -> None:
    """Fit ``model`` in place; deterministic for one seed, machine and thread count.

    Args:
        model: an ``open_clip.CustomTextCLIP``.
        images: uint8 (N, S, S) grey pictures.
        spare: bool (N, S, S), what augmentation must not hide: the captioned targets.
        tokens: int64 (N, context), row n belongs to image n.
        normalise: float (B, 3, S, S) in [0, 1] → model input.
        training: see ``ClipTraining``.
        log: takes a line of progress every hundred steps.
    """
    torch.manual_seed(training.seed)
    rng = np.random.default_rng(training.seed)
    decay = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": decay, "weight_decay": training.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_cosine(step, training.warmup, training.steps)
    )
    model.train()
    started, recent = time.monotonic(), []
    for step in range(training.steps):
        chosen = torch.from_numpy(rng.choice(len(images), training.batch, replace=False))
        batch = torch.from_numpy(images[chosen.numpy()]).float() / 255
        batch = augment(blur_patches(batch, torch.from_numpy(spare[chosen.numpy()])))
        batch = normalise(batch[:, None].expand(-1, 3, -1, -1))
        words = tokens[chosen]
        words = words[:, : int((words != 0).sum(1).max())]
        loss = dhn_nce(
            model.encode_image(batch),  # type: ignore[operator]
            model.encode_text(words),  # type: ignore[operator]
            training.temperature,
            training.beta,
            training.beta,
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
        optimizer.step()
        schedule.step()
        recent.append(loss.item())
        if (step + 1) % 100 == 0:
            took = time.monotonic() - started
            log(f"clip step {step + 1}/{training.steps} loss {np.mean(recent):.4f} {took:.0f} s")
            recent = []
    with torch.no_grad():
        model.logit_scale.fill_(math.log(1 / training.temperature))  # type: ignore[operator]
    model.eval()


def warmup_cosine(step: int, warmup: int, steps: int) -> float:
    """Factor of the learning rate: linear rise, then a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def augment(images: Tensor) -> Tensor:
    """Shift, scale, gain, gamma and noise of (B, S, S) pictures in [0, 1]; never mirrors,
    since captions say left and right."""
    count = images.shape[0]
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = 1 + 0.1 * (torch.rand(count) * 2 - 1)
    theta[:, 1, 1] = 1 + 0.1 * (torch.rand(count) * 2 - 1)
    theta[:, :, 2] = 0.1 * (torch.rand(count, 2) * 2 - 1)
    shape = (count, 1, *images.shape[1:])
    grid = F.affine_grid(theta, list(shape), align_corners=False)
    moved = F.grid_sample(images[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
    gain = torch.empty(count, 1, 1).uniform_(0.8, 1.2)
    gamma = torch.empty(count, 1, 1).uniform_(0.8, 1.25)
    lift = torch.empty(count, 1, 1).uniform_(-0.05, 0.05)
    noise = torch.empty(count, 1, 1).uniform_(0, 0.04) * torch.randn_like(moved)
    return (moved.clamp_min(1e-4) ** gamma * gain + lift + noise).clamp(0, 1)


def blur_patches(images: Tensor, spare: Tensor) -> Tensor:
    """Blur random soft patches of (B, S, S) pictures away from ``spare`` bool (B, S, S).

    Saliency by masking asks the model about partly blurred pictures; one that has never
    seen any answers about the blur. Three quarters of the pictures get patches.
    """
    count, side = images.shape[0], images.shape[-1]
    sigma = float(torch.empty(1).uniform_(3, 14))
    blurred = _blur_each(images, sigma)
    noise = torch.randn(count, 1, 5, 5)
    noise = F.interpolate(noise, (side, side), mode="bicubic", align_corners=False)[:, 0]
    cover = torch.sigmoid(6 * (noise + torch.empty(count, 1, 1).uniform_(-1.2, 0.8)))
    cover = cover * (torch.rand(count, 1, 1) < 0.75)
    near = F.max_pool2d(spare[:, None].float(), 7, stride=1, padding=3)
    cover = cover * (1 - _blur_each(near[:, 0], 1.5))
    return images * (1 - cover) + blurred * cover


def _blur_each(images: Tensor, sigma: float) -> Tensor:
    """OpenCV's Gaussian: ten times faster here than a convolution on the CPU."""
    blurred = [cv2.GaussianBlur(image, (0, 0), sigma) for image in images.numpy()]
    return torch.from_numpy(np.stack(blurred))
