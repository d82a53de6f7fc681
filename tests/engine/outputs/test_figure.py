"""Pictures: right size, right pixels, readable at any size."""

import io

import numpy as np
import pytest
from PIL import Image

from medclipsam.engine.outputs.figure import BOX, MASK, inspection, overlay, preview
from medclipsam.engine.types import Segmentation

NO_BOXES = np.zeros((0, 4), dtype=np.int32)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def segment(height, width, status="done"):
    mask = np.zeros((height, width), dtype=bool)
    if status == "done":
        mask[height // 4 : height // 2 + 1, width // 3 : width // 2 + 1] = True
    saliency = np.linspace(0, 1, height * width, dtype=np.float32).reshape(height, width)
    boxes = np.array([[width // 3, height // 4, width // 2 + 1, height // 2 + 1]], dtype=np.int32)
    return Segmentation(
        status=status,
        mask=mask,
        boxes=boxes if mask.any() else NO_BOXES,
        saliency=saliency,
        crf_mask=mask.copy(),
        contrast=0.1,
        predicted_iou=0.9,
        stability=0.8,
        confidence=0.72,
    )


def test_overlay_tints_inside_outlines_the_rim_and_leaves_the_rest():
    rgb = noise(60, 80)
    mask = np.zeros((60, 80), dtype=bool)
    mask[20:40, 30:50] = True
    before = rgb.copy()
    drawn = overlay(rgb, mask, NO_BOXES, alpha=0.25)
    assert np.array_equal(rgb, before)
    assert np.array_equal(drawn[~mask], rgb[~mask])
    blend = rgb[21:39, 31:49] * 0.75 + np.array(MASK) * 0.25
    assert np.abs(drawn[21:39, 31:49] - blend).max() <= 0.5
    rim = mask.copy()
    rim[21:39, 31:49] = False
    assert (drawn[rim] == MASK).all()


def test_the_rim_of_a_hole_is_drawn_too():
    mask = np.ones((40, 40), dtype=bool)
    mask[15:25, 15:25] = False
    drawn = overlay(noise(40, 40), mask, NO_BOXES)
    assert (drawn[20, 14] == MASK).all()


def test_boxes_have_an_exclusive_end_and_stay_inside():
    rgb = np.zeros((30, 40, 3), dtype=np.uint8)
    none = np.zeros((30, 40), dtype=bool)
    drawn = overlay(rgb, none, np.array([[5, 6, 15, 20], [30, 0, 40, 30]]))
    lit = (drawn == BOX).all(-1)
    ys, xs = np.nonzero(lit[:, :25])
    assert (xs.min(), xs.max() + 1, ys.min(), ys.max() + 1) == (5, 15, 6, 20)
    assert lit.sum() == 2 * (10 + 14) - 4 + 2 * (10 + 30) - 4
    assert not drawn[~lit].any()


def test_lines_grow_with_the_image():
    rgb = np.zeros((1500, 900, 3), dtype=np.uint8)
    drawn = overlay(rgb, np.zeros((1500, 900), dtype=bool), np.array([[300, 300, 600, 900]]))
    assert (drawn[600] == BOX).all(-1).sum() == 2 * 5  # two sides, 1500 / 300 pixels each


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1, 1), (384, 384)),
        ((200, 3000), (384, 26)),
        ((3000, 200), (26, 384)),
        ((4000, 3), (1, 384)),
        ((96, 64), (256, 384)),
    ],
)
def test_previews_fit_and_are_repeatable(shape, size):
    rgb, part = noise(*shape), segment(*shape)
    data = preview(rgb, part.mask, part.boxes)
    assert data == preview(rgb, part.mask, part.boxes)
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", size)


def test_a_tiny_mask_survives_the_thumbnail():
    rgb = np.zeros((2000, 2000, 3), dtype=np.uint8)
    mask = np.zeros((2000, 2000), dtype=bool)
    mask[1000, 1000] = True
    shown = np.asarray(Image.open(io.BytesIO(preview(rgb, mask, NO_BOXES, side=100))))
    assert shown[50, 50, 1] > 80
    assert shown[:40].max() < 10
    nothing = np.asarray(Image.open(io.BytesIO(preview(rgb, mask & False, NO_BOXES, side=100))))
    assert nothing.max() == 0


def test_boxes_follow_the_scale_of_the_thumbnail():
    rgb = np.zeros((400, 800, 3), dtype=np.uint8)
    data = preview(rgb, np.zeros((400, 800), dtype=bool), np.array([[200, 100, 600, 300]]), side=80)
    lit = np.asarray(Image.open(io.BytesIO(data))).max(-1) > 120
    ys, xs = np.nonzero(lit)
    assert (xs.min(), xs.max() + 1, ys.min(), ys.max() + 1) == (20, 60, 10, 30)


@pytest.mark.parametrize("shape", [(1, 1), (90, 130), (200, 3000), (3000, 200)])
def test_inspection_is_one_figure_with_a_row_for_each_prompt(shape):
    height, width = shape
    rgb = noise(height, width)
    one = inspection(rgb, {"mass": segment(height, width)}, {"mass": "a mass"})
    both = {"mass": segment(height, width), "cyst": segment(height, width, "absent")}
    two = inspection(rgb, both, {"mass": "a mass", "cyst": "a cyst"})
    assert one.dtype == np.uint8 and one.shape[2] == 3
    assert one.shape[1] == two.shape[1] > 700
    row = two.shape[0] - one.shape[0]
    assert row > 130
    assert np.array_equal(one, two[: one.shape[0]])
    assert not np.array_equal(two[-row:], two[-2 * row : -row])


def test_inspection_shows_the_image_itself_first():
    rgb = np.zeros((300, 300, 3), dtype=np.uint8)
    rgb[..., 0], rgb[..., 2] = 200, 40
    figure = inspection(rgb, {"a": segment(300, 300)}, {"a": "x"})
    assert (figure == (200, 0, 40)).all(-1).sum() > 300 * 300  # panel, and around mask and box
    assert (figure == BOX).all(-1).sum() >= 2 * 90


def test_any_text_can_be_a_caption():
    shape = (50, 50)
    plain = {"mass": segment(*shape)}
    hostile = "é 中文 \U0001f600 \ud800 \n\t\x00 " + "very long " * 500
    figure = inspection(noise(*shape), plain, {"mass": hostile})
    other = inspection(noise(*shape), plain, {"mass": ""})
    assert figure.shape == other.shape
    changed = np.nonzero((figure != other).any(axis=(1, 2)))[0]
    assert 0 < changed.size < 30  # the caption only
    assert (figure[:, -10:] == 255).all()


def test_inspection_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        inspection(noise(4, 4), {}, {})
