"""contrastcam: which parts of the image carry the *contrast* between prompt and null.

gScoreCAM keeps what a channel shows and asks whether the prompt is still there; the
winner is often a mask that keeps everything. Here soft spots on an even grid probe the
image in both directions: one row shows the image inside a narrow spot over a blurred copy of
itself (neutral: no invented grey), another deletes a wide spot in the same way. Scores are
contrasts to a null prompt and to the other prompts, so what all texts share cancels. The
map is the linear attribution β that explains the scores from the masks by ridge
regression,

    β = argmin Σ_r (s_r − s̄ − ∫ β(x) (M_r(x) − M̄(x)) dx)² + λ ‖β‖²,

so that overlapping spots share their credit instead of adding it up, as sums of weighted
masks (ScoreCAM, RISE) do. β is a weighted sum of the masks, hence known at any
resolution: it is read at ``FINE`` points a cell, which finds small targets between cells.

From coarse to fine, in two rounds. The first one shows the narrow spots in every other row and
column of the grid, and deletes as many wide ones. Its map chooses, for whichever prompt, the
spots not seen where it is highest on average. The second round shows these, and one
regression explains the scores of both. The map is smoothed by half a cell, so that no single
row decides where it is highest.

``benchmarks/results/ablation.md`` holds what each of these choices brings.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from medclipsam.engine.backends.handover import upload
from medclipsam.engine.config import SaliencyConfig
from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.saliency.contrast import contrast_directions
from medclipsam.engine.saliency.masks import gaussian_blur, scale_map
from medclipsam.engine.saliency.question import Maps, Question, ask
from medclipsam.engine.saliency.rows import Probe, Round, stack_maps
from medclipsam.engine.saliency.spots import FINE, SpotMasks, open_masks

SMOOTH = 0.5  # deviation in cells by which the map is smoothed
DELETED = 0.6  # weight of λ for rows that delete a spot, against 1 for those that show one


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

    About g²/2 + 2 g rows for g × g cells, whatever the number of prompts: all share them. With
    several prompts each is also a contrast to the others, so give together what may be
    confused.

    Args:
        model: the CLIP to ask.
        images: float32 (B, 3, S, S) RGB in [0, 1].
        prompts: float32 (P, D) unit text embeddings.
        nulls: float32 (N, D) unit embeddings of null prompts, N ≥ 1; each image is
            contrasted with the one nearest to it.
        blur: deviation of the fill as a share of S.
        spot: deviation of a narrow spot in cells.
        ridge: λ relative to the mean diagonal of the dual system; smaller for rows that delete.

    Returns:
        float32 (B, P, FINE·g, FINE·g) in [0, 1], all zero where nothing speaks for the prompt.
    """
    asked = ask(model, images, prompts, nulls)
    return stack_maps(model, (probe_contrastcam(model, q, blur, spot, ridge) for q in asked))


def probe_contrastcam(
    model: ClipEncoder, question: Question, blur: float, spot: float, ridge: float
) -> Probe:
    """Rows of one image, in two rounds."""
    image = question.image
    fill = gaussian_blur(image[None], blur * model.image_size)[0]
    directions = contrast_directions(question.prompts, question.nulls, question.embedding)
    masks = open_masks(model.cells, spot)

    def score(rows: Tensor) -> Tensor:
        return (model.logit_scale * rows @ directions.T).double()

    def show(index: Tensor) -> Callable[[int, int], Tensor]:
        there = upload(index, image.device)

        def make(start: int, stop: int) -> Tensor:
            keep = masks.draw(there[start:stop], model.image_size)
            return torch.lerp(fill, image, keep[:, None])

        return make

    def choose(rows: Tensor) -> Probe:
        first = score(rows)
        telling = masks.most_telling(scale_map(explain(masks, masks.first, first, ridge)))

        def finish(rows: Tensor) -> Maps:
            def maps() -> Tensor:
                scores = torch.cat([first, score(rows)])
                index = torch.cat([masks.first, telling])
                maps = explain(masks, index, scores, ridge)
                return scale_map(gaussian_blur(maps[None], SMOOTH * FINE)[0])[question.wanted]

            return maps

        return Probe(len(telling), show(telling), finish)

    return Probe(len(masks.first), show(masks.first), choose)


def explain(masks: SpotMasks, index: Tensor, scores: Tensor, ridge: float) -> Tensor:
    """The ridge regression: scores float64 (R, P) of masks ``index`` (R,) → the positive part
    of β, as its sum over a cell: float32 (P, FINE·g, FINE·g)."""
    gram = masks.gram[index][:, index]
    gram = gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()  # of centred masks
    noise = torch.where(index < masks.places**2, 1.0, DELETED)
    gram.diagonal().add_(ridge * gram.diagonal().mean() * noise)
    weights = torch.linalg.solve(gram, scores - scores.mean(0))
    beta = (weights - weights.mean(0)).T @ masks.design[index]
    side = masks.side
    return (FINE**2 * beta).float().relu().unflatten(1, (side, side))


def probe(model: ClipEncoder, question: Question, config: SaliencyConfig) -> Round:
    """The method as settings name it."""
    return probe_contrastcam(model, question, config.blur, config.spot, config.ridge)
