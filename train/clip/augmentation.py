"""What may happen to an image on its way into CLIP. Never mirrored: captions say left and right."""

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def augment(kind: str, images: Tensor, spare: Tensor | None) -> Tensor:
    """Images (B, C, S, S) in [0, 1], changed at random as ``kind`` says.

    Args:
        kind: ``none``; ``light``: shift, scale, gain, gamma and noise; ``patches``: also blurred
            patches, for models that are to answer about masked images.
        spare: bool (B, S, S), what patches must not hide: what the captions are about.
    """
    if kind == "none":
        return images
    if kind == "patches":
        spare = torch.zeros(images[:, 0].shape, dtype=torch.bool) if spare is None else spare
        images = blur_patches(images, spare)
    return jitter(images)


def jitter(images: Tensor) -> Tensor:
    """Shift, scale, gain, gamma and noise of (B, C, S, S) in [0, 1]."""
    count = images.shape[0]
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = 1 + 0.1 * (torch.rand(count) * 2 - 1)
    theta[:, 1, 1] = 1 + 0.1 * (torch.rand(count) * 2 - 1)
    theta[:, :, 2] = 0.1 * (torch.rand(count, 2) * 2 - 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    one = (count, 1, 1, 1)
    gain = torch.empty(one).uniform_(0.8, 1.2)
    gamma = torch.empty(one).uniform_(0.8, 1.25)
    lift = torch.empty(one).uniform_(-0.05, 0.05)
    noise = torch.empty(one).uniform_(0, 0.04) * torch.randn_like(moved)
    return (moved.clamp_min(1e-4) ** gamma * gain + lift + noise).clamp(0, 1)


def blur_patches(images: Tensor, spare: Tensor) -> Tensor:
    """Blur random soft patches of (B, C, S, S) images away from ``spare`` bool (B, S, S).

    Saliency by masking asks the model about partly blurred images; one that has never
    seen any answers about the blur. Three quarters of the images get patches.
    """
    count, side = images.shape[0], images.shape[-1]
    sigma = float(torch.empty(1).uniform_(side / 32, side / 7))
    blurred = _blur_each(images, sigma)
    noise = torch.randn(count, 1, 5, 5)
    noise = F.interpolate(noise, (side, side), mode="bicubic", align_corners=False)
    cover = torch.sigmoid(6 * (noise + torch.empty(count, 1, 1, 1).uniform_(-1.2, 0.8)))
    cover = cover * (torch.rand(count, 1, 1, 1) < 0.75)
    near = F.max_pool2d(spare[:, None].float(), 7, stride=1, padding=3)
    cover = cover * (1 - _blur_each(near, 1.5))
    return images * (1 - cover) + blurred * cover


def _blur_each(images: Tensor, sigma: float) -> Tensor:
    """OpenCV's Gaussian: ten times faster here than a convolution on the CPU."""
    planes = images.flatten(0, 1).numpy()
    blurred = [cv2.GaussianBlur(plane, (0, 0), sigma) for plane in planes]
    return torch.from_numpy(np.stack(blurred)).reshape(images.shape)
