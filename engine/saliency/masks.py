"""Channel maps as soft masks over the model's input."""

import torch
from torch import Tensor
from torch.nn import functional as F


def scale_map(maps: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Min–max scale the last two axes to [0, 1]; a constant map becomes zeros."""
    low = maps.amin((-2, -1), keepdim=True)
    high = maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low + epsilon)


def channel_masks(maps: Tensor, side: int) -> Tensor:
    """(R, g, g) activations → (R, 1, side, side) masks in [0, 1].

    Bilinear with aligned corners, then min–max with 1e-6, as gScoreCAM has it.
    """
    large = F.interpolate(maps[:, None], (side, side), mode="bilinear", align_corners=True)
    return scale_map(large)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian of (B, 3, S, S), cut at 3σ, edges replicated."""
    radius = max(1, int(3 * sigma + 0.5))
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    channels = images.shape[1]
    rows = F.pad(images, (radius, radius, 0, 0), mode="replicate")
    rows = F.conv2d(rows, kernel, groups=channels)
    columns = F.pad(rows, (0, 0, radius, radius), mode="replicate")
    return F.conv2d(columns, kernel.transpose(2, 3), groups=channels)


def spot_profiles(places: int, width: float, side: int, device: torch.device) -> Tensor:
    """One axis of ``spot_masks``: float32 (places, side)."""
    centres = (torch.arange(places, device=device) + 0.5) / places
    pixels = (torch.arange(side, device=device) + 0.5) / side
    return torch.exp(-0.5 * ((pixels - centres[:, None]) / width) ** 2)


def spot_masks(places: int, width: float, side: int, index: Tensor) -> Tensor:
    """Gaussians of height 1 on an even grid of ``places`` × ``places`` over the picture.

    Args:
        places: spots per side.
        width: deviation as a share of the picture's side.
        side: pixels per side of the masks.
        index: int64 (R,) spots to draw, row by row.

    Returns:
        float32 (R, side, side).
    """
    profile = spot_profiles(places, width, side, index.device)
    return profile[index // places, :, None] * profile[index % places, None, :]
