"""The loss of task models against its formula, literally, in float64."""

import math

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss

from medclipsam.train.unet.loss import pair_weights, task_loss


def literal_loss(logits, masks, weights, known):
    """Pixel by pixel, in Python's floats."""
    total, pairs = 0.0, 0
    for b, k in np.ndindex(known.shape):
        if not known[b, k]:
            continue
        pairs += 1
        both = drawn = true = cross = 0.0
        pixels = list(zip(logits[b, k].ravel().tolist(), masks[b, k].ravel().tolist(), strict=True))
        for z, t in pixels:
            p = 1 / (1 + math.exp(-z))
            both, drawn, true = both + p * t, drawn + p, true + t
            cross -= t * math.log(p) + (1 - t) * math.log(1 - p)
        dice = 1 - (2 * both + 1) / (drawn + true + 1)
        total += float(weights[b, k]) * (dice + cross / len(pixels))
    return total / max(pairs, 1)


def batch(seed=0, shape=(3, 2, 5, 7)):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    masks = (torch.rand(shape, generator=generator) < 0.3).double()
    masks[0, 0] = 0
    weights = 2 * torch.rand(shape[:2], generator=generator, dtype=torch.float64)
    known = torch.tensor([[1, 1], [0, 1], [1, 0]], dtype=torch.float64)
    return logits, masks, weights, known


@pytest.mark.parametrize("seed", range(3))
def test_it_is_its_formula(seed):
    logits, masks, weights, known = batch(seed)
    expected = literal_loss(logits.numpy(), masks.numpy(), weights.numpy(), known.numpy())
    assert task_loss(logits, masks, weights, known).item() == pytest.approx(expected, rel=1e-12)
    single = task_loss(logits.float(), masks.float(), weights.float(), known.float())
    assert single.item() == pytest.approx(expected, rel=1e-5)


def test_with_equal_weights_it_is_monai_s():
    logits, masks, _, _ = batch(shape=(4, 1, 6, 6))
    ones = torch.ones(4, 1, dtype=torch.float64)
    theirs = DiceCELoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0)(logits, masks)
    assert task_loss(logits, masks, ones, ones).item() == pytest.approx(theirs.item(), rel=1e-6)


def test_its_gradient_is_right_and_unknown_labels_have_none():
    logits, masks, weights, known = batch()
    logits.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda z: task_loss(z, masks, weights, known), logits)
    task_loss(logits, masks, weights, known).backward()
    silent = logits.grad.abs().amax((2, 3)) == 0
    assert torch.equal(silent, known == 0)


def test_nothing_known_is_no_loss_and_extreme_logits_are_finite():
    logits, masks, weights, known = batch()
    assert task_loss(logits, masks, weights, 0 * known).item() == 0
    assert torch.isfinite(task_loss(1e4 * logits, masks, weights, known))


def test_drawing_where_there_is_nothing_costs_more_the_more_is_drawn():
    masks, one = torch.zeros(1, 1, 8, 8), torch.ones(1, 1)
    few, many = torch.full((1, 1, 8, 8), -9.0), torch.full((1, 1, 8, 8), -9.0)
    few[..., 0], many[..., :4] = 9, 9
    assert task_loss(few, masks, one, one) < task_loss(many, masks, one, one)


def test_weights_follow_confidence_and_keep_a_mean_of_one():
    known = np.array([[True, False], [True, True], [True, True]])
    confidence = np.array([[0.2, 0.9], [0.6, 1.0], [0.4, 0.8]], np.float32)
    equal = pair_weights(known, confidence, by_confidence=False)
    np.testing.assert_array_equal(equal, known)
    found = pair_weights(known, confidence, by_confidence=True)
    assert found[known].mean() == pytest.approx(1) and found[0, 1] == 0
    np.testing.assert_allclose(found[known] / found[1, 1], confidence[known], rtol=1e-6)
    nothing = pair_weights(known, 0 * confidence, by_confidence=True)
    np.testing.assert_array_equal(nothing, known)
    assert not pair_weights(0 * known > 0, confidence, True).any()


def test_a_mask_of_twice_the_weight_counts_twice():
    """What weighting by confidence changes in the loss, as the formula says."""
    logits, masks, _, _ = batch(shape=(2, 1, 6, 6))
    known = np.ones((2, 1), bool)
    weights = pair_weights(known, np.array([[0.4], [0.8]], np.float32), True)
    np.testing.assert_allclose(weights, [[2 / 3], [4 / 3]], rtol=1e-6)
    one = torch.ones(1, 1)
    alone = [task_loss(logits[n : n + 1], masks[n : n + 1], one, one).item() for n in (0, 1)]
    together = task_loss(logits, masks, torch.from_numpy(weights), torch.ones(2, 1)).item()
    assert together == pytest.approx((2 / 3 * alone[0] + 4 / 3 * alone[1]) / 2, rel=1e-6)
