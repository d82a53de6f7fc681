"""Small changes of pictures and masks that leave what they show as it is.

Nothing is mirrored unless asked for: in most anatomy left and right differ.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from medclipsam.train.unet.settings import Augmentation

CELLS = 5  # of the grid whose random shifts make an elastic deformation


def augment(
    images: Tensor, masks: Tensor, how: Augmentation, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Change every picture at random, and its masks in the same way.

    Args:
        images: float (B, 3, S, S) in [0, 1].
        masks: float (B, L, S, S), 0 or 1.
        generator: of the CPU; the same state gives the same changes.

    Returns:
        The same shapes and ranges.
    """
    grid = _grid(images, how, generator)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    shapes = F.grid_sample(masks, grid, padding_mode="border", align_corners=False)
    return _shade(moved, how, generator), (shapes >= 0.5).float()


def _grid(images: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """(B, S, S, 2): where each pixel is read, (x, y) in [−1, 1]."""
    count = len(images)
    angle = math.radians(how.rotate) * _spread((count,), generator)
    size = 1 + how.scale * _spread((count,), generator)
    mirror = torch.ones(count)
    if how.flip:
        mirror = 1 - 2.0 * (torch.rand(count, generator=generator) < 0.5)
    cos, sin = size * angle.cos(), size * angle.sin()
    theta = torch.stack(
        [torch.stack([mirror * cos, -sin], 1), torch.stack([mirror * sin, cos], 1)], 1
    )
    offset = 2 * how.shift * _spread((count, 2, 1), generator)
    grid = F.affine_grid(torch.cat([theta, offset], 2), list(images.shape), align_corners=False)
    if how.elastic:
        corners = 2 * how.elastic * _spread((count, 2, CELLS, CELLS), generator)
        bent = F.interpolate(corners, images.shape[-2:], mode="bicubic", align_corners=True)
        grid = grid + bent.permute(0, 2, 3, 1)
    return grid


def _shade(images: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    each = (len(images), 1, 1, 1)
    gamma = (1 + how.gamma) ** _spread(each, generator)
    gain = (1 + how.gain) ** _spread(each, generator)
    size = how.noise * torch.rand(each, generator=generator)
    grain = torch.randn((len(images), 1, *images.shape[2:]), generator=generator)
    return (images.clamp_min(1e-4) ** gamma * gain + size * grain).clamp(0, 1)


def _spread(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform in [−1, 1]."""
    return 2 * torch.rand(shape, generator=generator) - 1
