"""contrastcam: which parts of the image carry the *contrast* between prompt and null.

gScoreCAM keeps what a channel shows and asks whether the prompt is still there; the
winner is often a mask that keeps everything. Here soft spots, one on each cell, probe the
image in both directions: one row shows the image inside the spot over a blurred copy of
itself (neutral: no invented grey), one deletes the spot in the same way. Scores are
contrasts to a null prompt and to the other prompts, so what all texts share cancels. The
map is the linear
attribution β that explains the scores from the masks by ridge regression,

    β = argmin Σ_r (s_r − s̄ − Σ_x β(x) (M_r(x) − M̄(x)))² + λ ‖β‖²,

so that overlapping spots share their credit instead of adding it up, as sums of weighted
masks (ScoreCAM, RISE) do.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.saliency.masks import gaussian_blur, scale_map


def contrastcam(
    model: ClipEncoder,
    images: Tensor,
    prompts: Tensor,
    nulls: Tensor,
    blur: float = 0.125,
    spot: float = 1.0,
    ridge: float = 1.0,
) -> Tensor:
    """Saliency of P prompts in B images by contrastive probing.

    Two rows per cell, whatever the number of prompts: all share them. With several
    prompts each is also a contrast to the others, so give together what may be confused.

    Args:
        model: the CLIP to ask.
        images: float32 (B, 3, S, S) RGB in [0, 1].
        prompts: float32 (P, D) unit text embeddings.
        nulls: float32 (N, D) unit embeddings of null prompts, N ≥ 1; each image is
            contrasted with the one nearest to it.
        blur: deviation of the fill as a share of S.
        spot: deviation of a spot in cells.
        ridge: λ relative to the mean diagonal of the dual system.

    Returns:
        float32 (B, P, g, g) in [0, 1], all zero where nothing speaks for the prompt.
    """
    pixels = model.normalise(images)
    embeddings, maps, _ = model.features(pixels, prompts[:0])
    spots = spot_masks(maps.shape[-1], spot).to(pixels)
    masks = torch.cat([spots, 1 - spots])
    solver = _ridge_solver(masks.flatten(1), ridge)
    out = []
    for image, embedding in zip(pixels, embeddings, strict=True):
        contrast = _contrasts(prompts, nulls[(nulls @ embedding).argmax()])
        rows = _probe(model, image, masks, blur * model.image_size)
        cam = (solver @ (rows @ contrast.T).double()).T.float()
        out.append(scale_map(cam.view(len(prompts), *maps.shape[-2:]).relu()))
    return torch.stack(out)


def _contrasts(prompts: Tensor, null: Tensor) -> Tensor:
    """(P, D): each prompt minus the null and, in equal parts, the mean of the others."""
    if len(prompts) == 1:
        return prompts - null
    others = (prompts.sum(0) - prompts) / (len(prompts) - 1)
    return prompts - 0.5 * (null + others)


def spot_masks(cells: int, deviation: float) -> Tensor:
    """(cells², cells, cells) Gaussians of height 1, one centred on each cell."""
    y, x = torch.meshgrid(torch.arange(cells), torch.arange(cells), indexing="ij")
    places = torch.stack([y.flatten(), x.flatten()], 1).float()
    squared = torch.cdist(places, places).square()
    return torch.exp(-0.5 * squared / deviation**2).view(-1, cells, cells)


def _probe(model: ClipEncoder, image: Tensor, masks: Tensor, sigma: float) -> Tensor:
    """Embeddings (R, D) of the image, sharp where a mask is 1 and blurred where it is 0."""
    fill = gaussian_blur(image[None], sigma)[0]
    side = (model.image_size, model.image_size)

    def make(start: int, stop: int) -> Tensor:
        keep = F.interpolate(masks[start:stop, None], side, mode="bilinear", align_corners=False)
        return torch.lerp(fill[None], image[None], keep)

    return model.embed(len(masks), make)


def _ridge_solver(design: Tensor, ridge: float) -> Tensor:
    """(cells, R) float64: scores of R masks → attribution of every cell."""
    centred = (design - design.mean(0)).double()
    gram = centred @ centred.T
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    centring = torch.eye(len(gram), dtype=gram.dtype, device=gram.device) - 1 / len(gram)
    return centred.T @ torch.linalg.solve(gram, centring)
