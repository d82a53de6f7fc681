"""M2IB (Wang et al., NeurIPS 2023): the saliency of MedCLIP-SAMv2.

A bottleneck between two blocks lets through λ of each token and drowns the rest in noise,
t = λ x + (1 − λ) ε; λ is fitted to pass as little as the cosine to the prompt allows,

    L = β · mean KL(t ‖ N(0, 1)) − mean cosine.

What still passes of a patch is its saliency.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from medclipsam.engine.backends.handover import upload
from medclipsam.engine.config import SaliencyConfig
from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.saliency.masks import scale_map
from medclipsam.engine.saliency.question import Maps, Question, ask
from medclipsam.engine.saliency.rows import Fetch, Round, stack_maps

START = 5.0  # of the logits of λ: nearly everything passes
DRAWS, STEPS, RATE = 10, 10, 1.0  # as published: noise samples, Adam steps, learning rate
TINY = 1e-12  # variance of the noise where λ rounds to 1


def m2ib(
    model: ClipEncoder, images: Tensor, prompts: Tensor, beta: float = 0.1, seed: int = 0
) -> Tensor:
    """Saliency by an information bottleneck.

    The blocks below the bottleneck (the encoder's ``split``) run once an image; only those
    above are repeated, forwards and backwards, in float32. Prompts are fitted one by one
    with the same noise, so they do not change each other's maps.

    Args:
        model: the CLIP to ask; its backend must offer gradients.
        images: float32 (B, 3, S, S) RGB in [0, 1].
        prompts: float32 (P, D) unit text embeddings.
        beta: weight of the compression.
        seed: of the noise, which is drawn on the CPU, so that devices agree.

    Returns:
        float32 (B, P, g, g) in [0, 1].
    """
    asked = ask(model, images, prompts)
    return stack_maps(model, (probe_m2ib(model, question, beta, seed) for question in asked))


def probe_m2ib(model: ClipEncoder, question: Question, beta: float, seed: int) -> Fetch:
    """One image."""
    tokens = model.lower(question.image[None])
    texts = upload(question.prompts[question.wanted], tokens.device)
    noise = draw_noise((STEPS, DRAWS, *tokens.shape[1:]), seed, tokens.device)
    capacity = torch.stack([_fit(model, tokens, text, beta, noise) for text in texts])
    cells = capacity[:, -(model.cells**2) :].unflatten(1, (model.cells, model.cells))

    def finish(cells: Tensor) -> Maps:
        return lambda: scale_map(cells)

    return Fetch((cells,), finish)


@lru_cache(maxsize=4)
@torch.inference_mode(False)  # of use in any mode
def draw_noise(shape: tuple[int, ...], seed: int, device: torch.device) -> Tensor:
    """Standard normal noise, the same for every image and prompt: (steps, draws, N, C)."""
    generator = torch.Generator().manual_seed(seed)
    steps = [torch.randn(shape[1:], generator=generator) for _ in range(shape[0])]
    return upload(torch.stack(steps), device)


def _fit(model: ClipEncoder, tokens: Tensor, text: Tensor, beta: float, noise: Tensor) -> Tensor:
    """Nats (N,) that the fitted bottleneck passes of each token of (1, N, C)."""
    alpha = torch.full_like(tokens, START).requires_grad_()
    optimizer = torch.optim.Adam([alpha], lr=RATE)
    for drawn in noise:
        through, drowned = torch.sigmoid(alpha), torch.sigmoid(-alpha)
        mean, variance = tokens * through, drowned.square().clamp_min(TINY)
        capacity = 0.5 * (mean.square() + variance - variance.log() - 1)
        seen = model.upper(mean + variance.sqrt() * drawn)
        loss = beta * capacity.mean() - F.cosine_similarity(seen, text[None]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return capacity.detach().sum(-1)[0]


def probe(model: ClipEncoder, question: Question, config: SaliencyConfig) -> Round:
    """The method as settings name it."""
    return probe_m2ib(model, question, config.beta, config.seed)
