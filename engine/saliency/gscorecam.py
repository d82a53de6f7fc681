"""gScoreCAM (Chen et al., "gScoreCAM: What objects is CLIP looking at?", ACCV 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.saliency.masks import channel_masks, scale_map


def gscorecam(model: ClipEncoder, images: Tensor, prompts: Tensor, k: int = 300) -> Tensor:
    """Saliency as published, but for the layer (the encoder's ``target``).

    1. The importance of a channel is the mean gradient of the logit over its patches.
    2. The k most important channels (signed) are scored: the channel's map, min–max
       scaled, multiplies the normalised image; its score is the logit of that image.
    3. Weights are a softmax over all channels of the scores, 0 for those not chosen.
    4. The map is ReLU(Σ w A), min–max scaled.

    Channel masks do not depend on the prompt, so with several prompts only the union of
    their channels is embedded.

    Args:
        model: the CLIP to ask.
        images: float32 (B, 3, S, S) RGB in [0, 1].
        prompts: float32 (P, D) unit text embeddings.
        k: channels scored per prompt; more than there are means all.

    Returns:
        float32 (B, P, g, g) in [0, 1], all zero where no channel speaks for the prompt.
    """
    pixels = model.normalise(images)
    _, maps, importance = model.features(pixels, prompts)
    channels = maps.shape[1]
    chosen = importance.topk(min(k, channels), dim=2).indices
    out = []
    for image, activation, wanted in zip(pixels, maps, chosen, strict=True):
        union = torch.unique(wanted)
        rows = _score_channels(model, image, activation[union], prompts)
        scores = torch.zeros(len(prompts), channels, device=rows.device)
        for p, channel_ids in enumerate(wanted):
            at = torch.searchsorted(union, channel_ids)
            scores[p, channel_ids] = rows[at, p]
        weights = scores.softmax(1)
        cam = torch.einsum("pc,chw->phw", weights, activation).relu()
        out.append(scale_map(cam))
    return torch.stack(out)


def _score_channels(model: ClipEncoder, image: Tensor, maps: Tensor, prompts: Tensor) -> Tensor:
    """Logits (R, P) of ``image`` multiplied by each of R channel masks."""

    def make(start: int, stop: int) -> Tensor:
        return image[None] * channel_masks(maps[start:stop], model.image_size)

    return model.logit_scale * model.embed(len(maps), make) @ prompts.T
