"""Masks of spots and channels, their scale, and the blur."""

import math

import pytest
import torch

from medclipsam.engine.saliency.masks import channel_masks, gaussian_blur, scale_map, spot_masks


def test_spots_are_gaussians_on_an_even_grid():
    masks = spot_masks(3, 0.1, 30, torch.arange(9))
    assert masks.shape == (9, 30, 30)
    for n, (row, column) in enumerate((r, c) for r in range(3) for c in range(3)):
        for y, x in ((0, 0), (4, 17), (29, 12), (15, 15)):
            dy = (y + 0.5) / 30 - (row + 0.5) / 3
            dx = (x + 0.5) / 30 - (column + 0.5) / 3
            expected = math.exp(-0.5 * (dy * dy + dx * dx) / 0.01)
            assert float(masks[n, y, x]) == pytest.approx(expected, abs=1e-6)
    assert torch.equal(spot_masks(3, 0.1, 30, torch.tensor([5, 0])), masks[[5, 0]])


@pytest.mark.parametrize("shape", [(2, 3, 7, 9), (1, 1, 5, 4)])
def test_scaling_fills_the_range_and_constants_become_zeros(shape):
    maps = torch.randn(shape)
    maps[0, 0] = 3
    scaled = scale_map(maps)
    assert not scaled[0, 0].any()
    for row in scaled.reshape(-1, *shape[2:])[1:]:
        assert row.min() == 0 and row.max() == pytest.approx(1, abs=1e-5)


def test_channel_masks_keep_corners():
    maps = torch.rand(4, 6, 6)
    masks = channel_masks(maps, 36)  # 7 pixels a cell: every cell is hit
    assert masks.shape == (4, 1, 36, 36)
    corners = masks[:, 0][:, [0, 0, -1, -1], [0, -1, 0, -1]]
    expected = scale_map(maps)[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(corners, expected, atol=1e-4, rtol=0)


def test_blur_is_gaussian_and_keeps_constants():
    torch.testing.assert_close(
        gaussian_blur(torch.full((1, 3, 20, 31), 0.4), 3), torch.full((1, 3, 20, 31), 0.4)
    )
    dot = torch.zeros(1, 3, 41, 35)
    dot[0, 1, 20, 17] = 1
    blurred = gaussian_blur(dot, 2.0)
    assert not blurred[0, [0, 2]].any() and blurred.sum() == pytest.approx(1, abs=1e-5)
    ratio = float(blurred[0, 1, 22, 17] / blurred[0, 1, 20, 17])
    assert ratio == pytest.approx(math.exp(-0.5), rel=1e-4)
