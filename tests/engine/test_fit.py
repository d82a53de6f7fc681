"""An image goes into the square and its map comes back to the same pixels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medclipsam.engine.fit import fit_image, make_fit, normalise_rgb, unfit_map

SIDE = 96
SHAPES = [(61, 97), (97, 61), (301, 155), (33, 250), (96, 96), (7, 11), (1, 50), (50, 1)]
ONE_CELL = 1.0  # pixels of the coarser grid: where a peak is found depends on sampling
RESAMPLING = 1e-4  # cv2.remap's weights are 5-bit fractions of values up to 1
modes = pytest.mark.parametrize("mode", ["squash", "pad"])
shapes = pytest.mark.parametrize("shape", SHAPES)


def square_map(image, fit):
    """What a perfect model would answer: brightness of the square it was shown."""
    return fit_image(image, fit)[..., 0].astype(np.float32) / 255


@modes
@shapes
@pytest.mark.parametrize("at", [(0.1, 0.2), (0.5, 0.5), (0.83, 0.35), (0.97, 0.97)])
def test_a_landmark_comes_back_where_it_was(shape, mode, at):
    height, width = shape
    fit = make_fit(height, width, SIDE, mode)
    wanted = [min(n - 1, int(share * n)) for n, share in zip(shape, at, strict=True)]
    image = np.zeros((height, width, 3), np.uint8)
    # as large as what shrinking leaves visible: one pixel of the coarser grid
    ry, rx = (max(1, -(-n // SIDE)) for n in (height, width))
    image[
        max(0, wanted[0] - ry) : wanted[0] + ry + 1, max(0, wanted[1] - rx) : wanted[1] + rx + 1
    ] = 255
    found = unfit_map(square_map(image, fit), fit)
    assert found.shape == shape and found.dtype == np.float32
    weight = np.where(found > 0.5 * found.max(), found, 0)
    truth = image[..., 0] / 255
    for axis, scale in ((0, fit.inner_height / height), (1, fit.inner_width / width)):
        places = np.arange(shape[axis])
        centre, expected = (
            (mass.sum(1 - axis) * places).sum() / mass.sum() for mass in (weight, truth)
        )
        assert abs(centre - expected) <= ONE_CELL * max(1, 0.5 / scale)


@modes
@shapes
def test_the_way_there_and_back_is_a_centred_ramp(shape, mode):
    """A linear ramp over the source survives: no half-pixel shift, no flip, no swap."""
    fit = make_fit(*shape, SIDE, mode)
    y = (np.arange(SIDE) + 0.5 - fit.top) / fit.inner_height
    x = (np.arange(SIDE) + 0.5 - fit.left) / fit.inner_width
    back = unfit_map((2 * y[:, None] + x[None]).astype(np.float32), fit)
    rows = (np.arange(shape[0]) + 0.5) / shape[0]
    columns = (np.arange(shape[1]) + 0.5) / shape[1]
    # the outer half cell of a squashed map is replicated, not extrapolated
    half_y, half_x = 0.5 / fit.inner_height, 0.5 / fit.inner_width
    if mode == "squash" or fit.inner_height == SIDE:
        rows = np.clip(rows, half_y, 1 - half_y)
    if mode == "squash" or fit.inner_width == SIDE:
        columns = np.clip(columns, half_x, 1 - half_x)
    slack = (2 / fit.inner_height + 1 / fit.inner_width) / 32  # remap: 1/32 of a cell
    np.testing.assert_allclose(back, 2 * rows[:, None] + columns[None], atol=slack + RESAMPLING)


@modes
@shapes
@pytest.mark.parametrize("cells", [(12, 12), (14, 14), (1, 1)])
def test_constants_stay_and_ranges_hold(shape, mode, cells):
    fit = make_fit(*shape, SIDE, mode)
    flat = unfit_map(np.full(cells, 0.3, np.float32), fit)
    assert flat.shape == shape
    np.testing.assert_allclose(flat, 0.3, atol=RESAMPLING)
    noise = np.random.default_rng(0).random(cells, np.float32)
    back = unfit_map(noise, fit)
    assert back.min() >= noise.min() - RESAMPLING and back.max() <= noise.max() + RESAMPLING


@modes
@shapes
def test_a_plain_image_fills_the_square_with_its_colour(shape, mode):
    image = np.empty((*shape, 3), np.uint8)
    image[:] = 200, 90, 7
    square = fit_image(image, make_fit(*shape, SIDE, mode))
    assert square.shape == (SIDE, SIDE, 3) and square.dtype == np.uint8
    assert (square == image[0, 0]).all()


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 500), st.integers(1, 500), st.integers(8, 300))
def test_pad_keeps_the_aspect_ratio_and_lies_inside(height, width, side):
    fit = make_fit(height, width, side, "pad")
    assert max(fit.inner_height, fit.inner_width) == side
    assert 0 <= fit.top <= side - fit.inner_height and 0 <= fit.left <= side - fit.inner_width
    assert abs(2 * fit.top + fit.inner_height - side) <= 1  # centred
    assert abs(2 * fit.left + fit.inner_width - side) <= 1
    scale = side / max(height, width)
    assert fit.inner_height == 1 or abs(fit.inner_height - height * scale) <= 0.5
    assert fit.inner_width == 1 or abs(fit.inner_width - width * scale) <= 0.5


def test_normalisation_is_per_channel():
    rgb = torch.rand(2, 3, 5, 5)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    out = normalise_rgb(rgb, mean, std)
    for channel in range(3):
        expected = (rgb[:, channel] - mean[channel]) / std[channel]
        torch.testing.assert_close(out[:, channel], expected)
