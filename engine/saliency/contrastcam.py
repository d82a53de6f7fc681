"""contrastcam: which parts of the image carry the *contrast* between prompt and null.

gScoreCAM keeps what a channel shows and asks whether the prompt is still there; the
winner is often a mask that keeps everything. Here the same channel masks serve as
probes in both directions: each channel's mask U keeps its region over a blurred copy of
the image (neutral: no invented grey), and its complement 1 − U deletes it. The scores
are contrasts to null prompts, so what all texts share cancels. The map is the linear
attribution β that explains the scores from the masks by ridge regression,

    β = argmin Σ_r (s_r − s̄ − Σ_x β(x) (M_r(x) − M̄(x)))² + λ ‖β‖²,

solved in its dual (rows are fewer than unknowns, or as many): correlated masks share
their credit instead of adding it up, as sums of weighted masks (ScoreCAM, RISE) do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.saliency.masks import channel_masks, gaussian_blur, scale_map


def contrastcam(
    model: ClipEncoder,
    images: Tensor,
    prompts: Tensor,
    nulls: Tensor,
    blur: tuple[float, ...] = (0.08, 0.15),
    ridge: float = 0.3,
) -> Tensor:
    """Saliency of P prompts in B images by contrastive masking.

    Two rows per channel and blur: keep and delete. All prompts share them.

    Args:
        model: the CLIP to ask.
        images: float32 (B, 3, S, S) RGB in [0, 1].
        prompts: float32 (P, D) unit text embeddings.
        nulls: float32 (N, D) unit embeddings of null prompts, N ≥ 1.
        blur: deviations of the fill as shares of S; maps are averaged over them.
        ridge: λ relative to the mean diagonal of the dual system.

    Returns:
        float32 (B, P, g, g) in [0, 1], all zero where nothing speaks for the prompt.
    """
    pixels = model.normalise(images)
    embeddings, maps, _ = model.features(pixels, prompts[:0])
    out = []
    for image, embedding, activation in zip(pixels, embeddings, maps, strict=True):
        contrast = prompts - nulls[(nulls @ embedding).argmax()]
        masks = scale_map(activation).flatten(1)
        design = torch.cat([masks, 1 - masks])
        total = torch.zeros(len(prompts), design.shape[1], device=design.device)
        for share in blur:
            rows = _probe(model, image, activation, share * model.image_size)
            total += _attribute(design, rows @ contrast.T, ridge).T
        cam = total.view(len(prompts), *activation.shape[1:])
        out.append(scale_map(cam.relu()))
    return torch.stack(out)


def _probe(model: ClipEncoder, image: Tensor, activation: Tensor, sigma: float) -> Tensor:
    """Embeddings (2C, D) of the image with each channel's region kept, then deleted."""
    fill = gaussian_blur(image[None], sigma)[0]
    channels = len(activation)

    def make(start: int, stop: int) -> Tensor:
        wanted = torch.arange(start, stop, device=activation.device)
        masks = channel_masks(activation[wanted % channels], model.image_size)
        keep = torch.where((wanted < channels)[:, None, None, None], masks, 1 - masks)
        return keep * image[None] + (1 - keep) * fill[None]

    return model.embed(2 * channels, make)


def _attribute(design: Tensor, scores: Tensor, ridge: float) -> Tensor:
    """Ridge regression of (R, P) scores on (R, cells) masks → (cells, P)."""
    centred = (design - design.mean(0)).double()
    gram = centred @ centred.T
    gram.diagonal().add_(ridge * gram.diagonal().mean() + 1e-12)
    dual = torch.linalg.solve(gram, (scores - scores.mean(0)).double())
    return (centred.T @ dual).float()
