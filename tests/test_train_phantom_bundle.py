"""The command that rebuilds the shipped bundle, with two steps instead of thousands."""

import numpy as np
import pytest
import torch

from medclipsam.engine.bundle import open_bundle
from medclipsam.engine.engine import Engine
from medclipsam.train import phantom_bundle, phantom_calibration
from medclipsam.train.clip import ClipTraining, blur_patches
from medclipsam.train.phantom_bundle import build_phantom_bundle
from medclipsam.train.phantom_data import draw_phantoms, union_mask
from medclipsam.train.sam import SamTraining, jitter_boxes


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom_bundle, "CLIP_IMAGES", 96)
        patch.setattr(phantom_bundle, "SAM_IMAGES", 48)
        patch.setattr(phantom_calibration, "CALIBRATION", range(500_000, 500_020))
        patch.setattr(phantom_calibration, "CONFIDENCE", range(600_000, 600_006))
        folders = [tmp_path_factory.mktemp(name) / "bundle" for name in ("first", "second")]
        lines: list[str] = []
        for folder in folders:
            clip, sam = ClipTraining(steps=2, batch=8), SamTraining(steps=2, batch=3)
            build_phantom_bundle(folder, clip, sam, lines.append)
    return folders


def test_one_seed_gives_one_bundle(small):
    first, second = (open_bundle(str(folder)) for folder in small)
    assert first.digest == second.digest


def test_what_is_built_can_be_used(small):
    engine = Engine.open(str(small[0]), "cpu", settings={"presence": "none"})
    rgb = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
    found = engine.segment(rgb, {"mass": "breast ultrasound showing a mass"})
    assert found["mass"].mask.shape == (50, 70)


def test_drawing_is_the_same_with_any_number_of_workers():
    one, two = (draw_phantoms(range(70), 48, workers) for workers in (1, 2))
    np.testing.assert_array_equal(one.images, two.images)
    assert one.captions == two.captions


def test_blurred_patches_spare_the_targets():
    drawn = draw_phantoms(range(24), 96, 1)
    spare = np.stack([union_mask(masks, (96, 96)) for masks in drawn.masks])
    images = torch.from_numpy(drawn.images).float() / 255
    torch.manual_seed(0)
    changed = (blur_patches(images, torch.from_numpy(spare)) - images).abs().numpy()
    assert changed[spare].max() < 0.06
    assert changed[~spare].mean() > 0.01


def test_jittered_boxes_stay_within_their_bounds():
    rng = np.random.default_rng(0)
    masks = np.zeros((200, 128, 128), bool)
    masks[:, 40:60, 30:70] = True
    boxes = jitter_boxes(rng, masks, shrink=0.1, grow=0.3)
    low = np.array([30 - 12, 40 - 6, 70 - 4, 60 - 2])
    high = np.array([30 + 4, 40 + 2, 70 + 12, 60 + 6])
    assert (boxes >= low - 1e-4).all() and (boxes <= high + 1e-4).all()
    assert np.ptp(boxes, 0).min() > 5
