"""Components and boxes against cv2.connectedComponentsWithStats and scipy.ndimage."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from medclipsam.engine.boxes import extract_boxes, find_components, select_boxes
from medclipsam.engine.config import BoxConfig
from medclipsam.engine.errors import ConfigError


def oracle(mask):
    """(x0, y0, x1, y1, area) of every component, as OpenCV finds them."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return sorted((int(x), int(y), int(x + w), int(y + h), int(a)) for x, y, w, h, a in stats[1:])


def ours(mask):
    found = find_components(mask)
    return sorted(
        (*map(int, box), int(area)) for box, area in zip(found.boxes, found.areas, strict=True)
    )


@settings(max_examples=300, deadline=None)
@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24)))
def test_equals_opencv_on_small_masks(mask):
    assert ours(mask) == oracle(mask)


@pytest.mark.parametrize("shape", [(61, 97), (128, 33), (1, 200), (200, 1), (255, 256)])
@pytest.mark.parametrize("density", [0.02, 0.3, 0.5, 0.6, 0.9])
def test_equals_opencv_on_random_masks(shape, density):
    rng = np.random.default_rng(int(density * 100) + shape[0])
    for _ in range(100):
        mask = rng.random(shape) < density
        assert ours(mask) == oracle(mask)


@pytest.mark.parametrize("shape", [(1, 1), (7, 64), (40, 33), (90, 128)])
@pytest.mark.parametrize("density", [0.1, 0.45, 0.8])
def test_areas_equal_scipy(shape, density):
    rng = np.random.default_rng(int(density * 100) + shape[1])
    for _ in range(10):
        mask = rng.random(shape) < density
        found = find_components(mask)
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        index = np.arange(1, count + 1)
        assert len(found.areas) == count
        np.testing.assert_array_equal(found.areas, ndimage.sum(mask, labels, index))


def test_types_and_strides_do_not_matter():
    rng = np.random.default_rng(0)
    mask = rng.random((60, 50)) < 0.4
    wide = np.zeros((60, 100), bool)
    wide[:, ::2] = mask
    assert ours(wide[:, ::2]) == ours(mask) == ours(np.asfortranarray(mask))
    assert ours(mask.astype(np.uint8) * 255) == ours(mask)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_selections_are_prefixes_of_all(seed):
    mask = np.random.default_rng(seed).random((30, 41)) < 0.35
    everything = extract_boxes(mask, "all")
    assert sorted(map(tuple, everything.tolist())) == sorted(row[:4] for row in oracle(mask))
    np.testing.assert_array_equal(extract_boxes(mask, "largest"), everything[:1])
    np.testing.assert_array_equal(extract_boxes(mask, "top-k", k=4), everything[:4])


def test_equal_areas_keep_reading_order():
    mask = np.zeros((9, 9), bool)
    mask[6:8, 0:2] = mask[0:2, 6:8] = mask[3:5, 3:5] = True
    assert extract_boxes(mask, "all").tolist() == [[6, 0, 8, 2], [3, 3, 5, 5], [0, 6, 2, 8]]


def test_diagonal_pixels_are_one_component():
    assert extract_boxes(np.eye(5, dtype=bool), "all").tolist() == [[0, 0, 5, 5]]


def test_min_area_and_empty():
    mask = np.zeros((10, 10), bool)
    assert extract_boxes(mask).shape == (0, 4)
    mask[2, 3] = mask[5:8, 5:8] = True
    assert extract_boxes(mask, "all", min_area=2).tolist() == [[5, 5, 8, 8]]
    assert extract_boxes(mask, "all", min_area=10).shape == (0, 4)


def test_padding_stays_inside_the_image():
    mask = np.zeros((20, 30), bool)
    mask[0:10, 20:30] = True
    boxes = select_boxes(mask, BoxConfig(pad=0.2))
    assert boxes.tolist() == [[18, 0, 30, 12]]


@pytest.mark.parametrize(
    "wrong", [{"select": "some"}, {"k": 0}, {"min_area": 1.0}, {"min_area": -1}, {"pad": 2}]
)
def test_settings_are_checked(wrong):
    with pytest.raises(ConfigError):
        BoxConfig(**wrong)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="H, W"):
        extract_boxes(np.zeros(5, bool))
    with pytest.raises(ValueError, match="largest"):
        extract_boxes(np.zeros((5, 5), bool), "biggest")
