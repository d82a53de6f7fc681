"""contrastcam: which parts of the image carry the *contrast* between prompt and null.

gScoreCAM keeps what a channel shows and asks whether the prompt is still there; the
winner is often a mask that keeps everything. Here soft spots on an even grid probe the
image in both directions: one row shows the image inside the spot over a blurred copy of
itself (neutral: no invented grey), one deletes the spot in the same way. Scores are
contrasts to a null prompt and to the other prompts, so what all texts share cancels. The
map is the linear attribution β that explains the scores from the masks by ridge
regression,

    β = argmin Σ_r (s_r − s̄ − ∫ β(x) (M_r(x) − M̄(x)) dx)² + λ ‖β‖²,

so that overlapping spots share their credit instead of adding it up, as sums of weighted
masks (ScoreCAM, RISE) do. β is a weighted sum of the masks, hence known at any
resolution: it is read at ``FINE`` points a cell, which finds small targets between cells.

``benchmarks/results/ablation.md`` holds what each of these choices brings.
"""

from functools import lru_cache

import torch
from torch import Tensor

from medclipsam.engine.config import SaliencyConfig
from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.saliency.contrast import contrast_directions
from medclipsam.engine.saliency.masks import gaussian_blur, scale_map, spot_masks
from medclipsam.engine.saliency.question import Maps, Question, ask
from medclipsam.engine.saliency.rows import Probe, stack_maps

FINE = 4


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

    2 (g − 1)² rows for g × g cells, whatever the number of prompts: all share them. With
    several prompts each is also a contrast to the others, so give together what may be
    confused.

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
        float32 (B, P, FINE·g, FINE·g) in [0, 1], all zero where nothing speaks for the prompt.
    """
    asked = ask(model, images, prompts, nulls)
    return stack_maps(model, (probe_contrastcam(model, q, blur, spot, ridge) for q in asked))


def probe_contrastcam(
    model: ClipEncoder, question: Question, blur: float, spot: float, ridge: float
) -> Probe:
    """Rows of one image: each spot shown, then each deleted."""
    image, cells = question.image, model.cells
    fill = gaussian_blur(image[None], blur * model.image_size)[0]
    places, width = max(1, cells - 1), spot / cells
    directions = contrast_directions(question.prompts, question.nulls, question.embedding)

    def make(start: int, stop: int) -> Tensor:
        index = torch.arange(start, stop, device=image.device)
        spots = spot_masks(places, width, model.image_size, index % places**2)
        keep = torch.where((index < places**2)[:, None, None], spots, 1 - spots)
        return torch.lerp(fill, image, keep[:, None])

    def finish(rows: Tensor) -> Maps:
        def maps() -> Tensor:
            solver = _ridge_solver(places, width, FINE * cells, ridge)
            scores = model.logit_scale * rows @ directions[question.wanted].T
            cam = (solver @ scores.double()).T.float()
            return scale_map(cam.unflatten(1, (FINE * cells, FINE * cells)).relu())

        return maps

    return Probe(2 * places**2, make, finish)


@lru_cache(maxsize=8)
def _ridge_solver(places: int, width: float, side: int, ridge: float) -> Tensor:
    """(side², R) float64: scores of all rows → β at side × side points, as sum over a cell."""
    spots = spot_masks(places, width, side, torch.arange(places**2))
    design = torch.cat([spots, 1 - spots]).flatten(1).double()
    centred = design - design.mean(0)
    gram = centred @ centred.T
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    centring = torch.eye(len(gram), dtype=gram.dtype) - 1 / len(gram)
    return FINE**2 * centred.T @ torch.linalg.solve(gram, centring)


def probe(model: ClipEncoder, question: Question, config: SaliencyConfig) -> Probe:
    """The method as settings name it."""
    return probe_contrastcam(model, question, config.blur, config.spot, config.ridge)
