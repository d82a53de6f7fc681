"""gScoreCAM written plainly, as the published code goes about it: what ours is measured against."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medclipsam.engine.fit import normalise_rgb

CHUNK = 128  # masked images per forward of the straightforward run


def straightforward(clip: Any, rgb: Tensor, text: str, k: int) -> Tensor:
    """gScoreCAM of one prompt as the published code goes about it, at ``norm1``: (g, g).

    Args:
        rgb: float32 (3, S, S) in [0, 1].
    """
    pixels = normalise_rgb(rgb[None], clip.mean, clip.std)
    activation, importance = _differentiate(clip, pixels, text)
    with torch.inference_mode():
        large = F.interpolate(
            activation[None], pixels.shape[2:], mode="bilinear", align_corners=True
        )[0]
        masked = pixels * _stretch(large)[:, None]  # (C, 3, S, S), chosen or not
        scores = torch.zeros(len(activation))
        for part in importance.topk(min(k, len(importance))).indices.split(CHUNK):
            scores[part] = _logits(clip, masked[part], text)
        cam = (scores.softmax(0)[:, None, None] * activation).sum(0).relu()
        return _stretch(cam)


def _differentiate(clip: Any, pixels: Tensor, text: str) -> tuple[Tensor, Tensor]:
    """Activation (C, g, g) and importance (C,): forward and backward of the whole tower."""
    trunk = clip.model.visual.trunk
    seen: list[Tensor] = []

    def look(module: Any, inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    hook = trunk.blocks[-1].norm1.register_forward_hook(look)
    logits = _logits(clip, pixels.clone().requires_grad_(), text)
    hook.remove()
    logits.sum().backward()
    (tokens,) = seen
    assert tokens.grad is not None
    prefix = trunk.num_prefix_tokens
    patches = tokens.detach()[0, prefix:].T  # (C, g²)
    side = math.isqrt(patches.shape[1])
    return patches.unflatten(1, (side, side)), tokens.grad[0, prefix:].mean(0)


def _logits(clip: Any, pixels: Tensor, text: str) -> Tensor:
    """(B, 3, S, S) → (B,); the text is encoded anew, padded to the full context."""
    images = F.normalize(clip.model.encode_image(pixels), dim=-1)
    texts = F.normalize(clip.model.encode_text(clip.tokenizer([text])), dim=-1)
    return (clip.model.logit_scale.exp() * images @ texts.T)[:, 0]


def _stretch(maps: Tensor) -> Tensor:
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low + 1e-6)
