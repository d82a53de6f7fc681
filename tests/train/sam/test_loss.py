"""The loss of SAM's masks is the literal one, and padding has no say."""

import numpy as np
import torch

from medclipsam.train.sam.encoder import inside_image
from medclipsam.train.sam.loss import hard_dice, mask_loss


def literal_loss(logits, predicted, truth, inside):
    """Pixel by pixel, in float64."""
    losses, dices = [], []
    for z, q, t, s in zip(logits, predicted, truth, inside, strict=True):
        pixels = [
            (float(a), bool(b)) for a, b, ok in zip(z.flat, t.flat, s.flat, strict=True) if ok
        ]
        p = [1 / (1 + np.exp(-a)) for a, _ in pixels]
        entropy = [-np.log(v if b else 1 - v) for v, (_, b) in zip(p, pixels, strict=True)]
        overlap = sum(v for v, (_, b) in zip(p, pixels, strict=True) if b)
        dice = (2 * overlap + 1) / (sum(p) + sum(b for _, b in pixels) + 1)
        both = sum(a > 0 and b for a, b in pixels)
        union = sum(a > 0 or b for a, b in pixels)
        losses.append(1 - dice + np.mean(entropy) + (float(q) - both / max(union, 1)) ** 2)
        dices.append(dice)
    return losses, dices


def loss_case():
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.normal(0, 2, (3, 9, 9)))
    inside = inside_image(np.array([[9, 9], [9, 5], [4, 9]]), 9)
    truth = torch.from_numpy(rng.random((3, 9, 9)) < 0.4) & inside
    return logits, torch.tensor([0.2, 0.7, 1.1]), truth, inside


def test_the_loss_is_the_literal_one():
    logits, predicted, truth, inside = loss_case()
    loss, dice = mask_loss(logits, predicted, truth, inside)
    expected = literal_loss(logits.numpy(), predicted, truth.numpy(), inside.numpy())
    np.testing.assert_allclose(loss, expected[0], rtol=1e-6)  # truth and share are float32
    np.testing.assert_allclose(dice, expected[1], rtol=1e-6)


def test_padding_has_no_say():
    logits, predicted, truth, inside = loss_case()
    other = torch.where(inside, logits, 50.0).requires_grad_()
    loss, _ = mask_loss(other, predicted, truth, inside)
    torch.testing.assert_close(loss, mask_loss(logits, predicted, truth, inside)[0])
    loss.sum().backward()
    assert not other.grad[~inside].any() and other.grad[inside].all()
    torch.testing.assert_close(hard_dice(other, truth, inside), hard_dice(logits, truth, inside))
