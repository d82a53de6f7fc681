"""The command that rebuilds the shipped bundle, with two steps instead of thousands."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from medclipsam.engine.engine import Engine
from medclipsam.engine.weights.bundle import open_bundle
from medclipsam.train.clip.augmentation import blur_patches
from medclipsam.train.phantoms import bundle as phantom_bundle
from medclipsam.train.phantoms import calibration as phantom_calibration
from medclipsam.train.phantoms.bundle import PHANTOM_CLIP, PHANTOM_SAM, build_phantom_bundle
from medclipsam.train.phantoms.pairs import write_phantom_pairs
from medclipsam.train.phantoms.phantoms import make_phantom
from medclipsam.train.sam.boxes import jitter_boxes


def build_small(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom_bundle, "CLIP_IMAGES", 24)
        patch.setattr(phantom_bundle, "SAM_IMAGES", 24)
        patch.setattr(phantom_calibration, "CALIBRATION", range(500_000, 500_020))
        patch.setattr(phantom_calibration, "CONFIDENCE", range(600_000, 600_006))
        clip = replace(PHANTOM_CLIP, epochs=1, batch=8)
        sam = replace(PHANTOM_SAM, steps=2, batch=3)
        build_phantom_bundle(folder, clip, sam, lambda line: None)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return build_small(tmp_path_factory.mktemp("small") / "bundle")


@pytest.mark.long
def test_one_seed_gives_one_bundle(small, tmp_path):
    again = build_small(tmp_path / "again")
    assert open_bundle(str(small)).digest == open_bundle(str(again)).digest


@pytest.mark.long
def test_what_is_built_can_be_used(small):
    engine = Engine.open(str(small), "cpu", settings={"presence": "none"})
    rgb = np.random.default_rng(0).integers(0, 255, (50, 70, 3), np.uint8)
    found = engine.segment(rgb, {"mass": "breast ultrasound showing a mass"})
    assert found["mass"].mask.shape == (50, 70)


def test_drawing_is_the_same_with_any_number_of_workers(tmp_path):
    tables = [
        write_phantom_pairs(tmp_path / str(workers), range(30), workers) for workers in (1, 2)
    ]
    files = [
        {p.relative_to(t.parent): p.read_bytes() for p in t.parent.rglob("*.*")} for t in tables
    ]
    assert files[0] == files[1] and len(files[0]) > 60


def test_blurred_patches_spare_the_targets():
    drawn = [make_phantom(seed, size=(96, 96)) for seed in range(24)]
    spare = np.stack([np.any([np.zeros((96, 96), bool), *p.masks.values()], 0) for p in drawn])
    images = torch.from_numpy(np.stack([p.pixels for p in drawn]))[:, None]
    torch.manual_seed(0)
    changed = (blur_patches(images, torch.from_numpy(spare)) - images).abs()[:, 0].numpy()
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
