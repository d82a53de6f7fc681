"""M2IB is the published loop over the whole open_clip model."""

import math

import torch
from clip_autograd import TEXTS, encoded, normalised, stretch
from torch.nn import functional as F

from medclipsam.engine.saliency.m2ib import m2ib

DESCENT = 1e-2  # ten steps of Adam amplify the last bits of float32


def reference_m2ib(clip, rgb, text, blocks, beta, seed):
    """The published loop over the whole open_clip model: a hook replaces the output of a block."""
    trunk = clip.model.visual.trunk
    seen = []
    hook = trunk.blocks[blocks - 1].register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        clip.model.encode_image(normalised(clip, rgb))
    hook.remove()
    tokens = seen[0]
    alpha = torch.full_like(tokens, 5.0).requires_grad_()
    noise = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([alpha], lr=1.0)
    for _ in range(10):
        lam = torch.sigmoid(alpha)
        mu, var = tokens * lam, (1 - lam) ** 2
        capacity = -0.5 * (1 + torch.log(var) - mu**2 - var)
        drawn = mu + var.sqrt() * torch.randn(10, *tokens.shape[1:], generator=noise)
        hook = trunk.blocks[blocks - 1].register_forward_hook(lambda *call, d=drawn: d)
        vectors = clip.model.encode_image(normalised(clip, rgb).expand(10, -1, -1, -1))
        hook.remove()
        loss = beta * capacity.mean() - F.cosine_similarity(vectors, text[None]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = torch.nansum(capacity.detach(), -1)[0, 1:]
    return stretch(found).reshape([math.isqrt(len(found))] * 2)


def test_m2ib_equals_the_published_loop(tiny_bundle, tiny_encoder, images, prompts):
    maps = m2ib(tiny_encoder, images, prompts, beta=0.1, seed=3)
    assert maps.shape == (2, 3, 12, 12)
    clip = tiny_bundle.clip
    for n, p in ((0, 0), (1, 2)):
        own = encoded(clip, TEXTS[p])
        expected = reference_m2ib(clip, images[n : n + 1], own, 3, 0.1, 3)
        assert (maps[n, p] - expected).abs().max() <= DESCENT
        alone = m2ib(tiny_encoder, images[n : n + 1], prompts[p : p + 1], beta=0.1, seed=3)
        assert torch.equal(alone[0, 0], maps[n, p])
    other = m2ib(tiny_encoder, images[:1], prompts[:1], beta=0.1, seed=4)
    assert not torch.equal(other[0, 0], maps[0, 0])
