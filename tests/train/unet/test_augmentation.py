"""Pictures change a little, and their masks in the same way."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medclipsam.engine.errors import ConfigError
from medclipsam.engine.evaluation.metrics import dice
from medclipsam.train.unet.augmentation import Augmentation, augment

STILL = Augmentation(0, 0, 0, 0, 0, 0)


def pair(count=3, side=24):
    """Masks that can be read off their pictures, still after any change of shape."""
    rng = np.random.default_rng(1)
    soft = [cv2.GaussianBlur(rng.random((side, side)).astype(np.float32), (0, 0), 3)] * count
    images = torch.from_numpy(np.stack(soft))[:, None].expand(-1, 3, -1, -1)
    images = (images - images.amin()) / (images.amax() - images.amin())
    return images, (images[:, :1] > 0.5).float()


@pytest.mark.parametrize("how", [replace(STILL, rotate=30), replace(STILL, scale=0.3),
                                 replace(STILL, shift=0.2), replace(STILL, elastic=0.1),
                                 replace(STILL, flip=True)])  # fmt: skip
def test_masks_move_with_their_pictures(how):
    images, masks = pair()
    moved, shapes = augment(images, masks, how, torch.Generator().manual_seed(2))
    assert not torch.equal(moved, images) and set(shapes.unique().tolist()) == {0, 1}
    assert dice(shapes.numpy()[:, 0] > 0, moved.numpy()[:, 0] > 0.5) > 0.95


def test_shades_change_and_shapes_stay():
    images, masks = pair()
    how = replace(STILL, gain=0.3, gamma=0.3, noise=0.1)
    moved, shapes = augment(images, masks, how, torch.Generator().manual_seed(2))
    assert torch.equal(shapes, masks) and not torch.equal(moved, images)
    assert moved.min() >= 0 and moved.max() <= 1


def test_no_change_is_no_change_and_one_state_gives_one_change():
    images, masks = pair()
    same, shapes = augment(images, masks, STILL, torch.Generator())
    torch.testing.assert_close(same, images, atol=1e-3, rtol=0)
    assert torch.equal(shapes, masks)
    a, b = (augment(images, masks, Augmentation(elastic=0.1, flip=True),
                    torch.Generator().manual_seed(7)) for _ in range(2))  # fmt: skip
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_mirroring_is_off_unless_asked_for():
    images, masks = pair(16)
    flipped, _ = augment(images, masks, replace(STILL, flip=True), torch.Generator())
    mirrored = [torch.allclose(f, i.flip(-1), atol=1e-3) for f, i in zip(flipped, images,
                                                                         strict=True)]  # fmt: skip
    assert 0 < sum(mirrored) < 16 and not Augmentation().flip


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["rotate", "gain", "elastic", "noise"]), st.sampled_from([-1.0, np.inf]))
def test_senseless_augmentation(name, value):
    with pytest.raises(ConfigError, match=f"{name} must be"):
        Augmentation(**{name: value})
