"""Contrastive losses of MedCLIP-SAM (arXiv 2403.20253) and those it is compared with.

Letters: B pairs in the batch, D embedding width, s_ij = I_i·T_j / τ with unit rows, and
w_ij = (B−1) · exp(β s_ij) / Σ_{k≠i} exp(β s_ik), the weight of a negative. Each loss is the sum of
both directions, each the mean over the batch; image to text:

    info_nce    −s_ii + log [ exp(s_ii) + Σ_{j≠i} exp(s_ij) ]          van den Oord 2018, CLIP
    dcl         −s_ii + log Σ_{j≠i} exp(s_ij)                          Yeh 2022: decoupled
    hn_nce      −s_ii + log [ exp(s_ii) + Σ_{j≠i} w_ij exp(s_ij) ]     Radenovic 2023, α = 1
    dhn_nce     −s_ii + log Σ_{j≠i} w_ij exp(s_ij)                     MedCLIP-SAM, eqs. 1–5

Text to image is the same over columns, with β2. All in log space, in float32 at least.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Literal["dhn-nce", "hn-nce", "dcl", "info-nce"]
LOSSES: tuple[Loss, ...] = get_args(Loss)


def info_nce(image_embeddings: Tensor, text_embeddings: Tensor, temperature: float = 0.6) -> Tensor:
    """Noise-contrastive estimation with all other pairs as equal negatives.

    Args:
        image_embeddings: (B, D), row i belongs to row i of the texts; any norm.
        text_embeddings: (B, D); any norm.
        temperature: τ > 0.

    Returns:
        The scalar sum of both directions.

    Raises:
        ValueError: shapes differ, or fewer than two pairs.
    """
    return _both(image_embeddings, text_embeddings, temperature, (0.0, 0.0), decoupled=False)


def dcl(image_embeddings: Tensor, text_embeddings: Tensor, temperature: float = 0.6) -> Tensor:
    """Decoupled: the positive is not in the denominator. Else as ``info_nce``."""
    return _both(image_embeddings, text_embeddings, temperature, (0.0, 0.0), decoupled=True)


def hn_nce(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    temperature: float = 0.6,
    beta1: float = 0.15,
    beta2: float = 0.15,
) -> Tensor:
    """Hard negatives weigh more. Arguments as of ``dhn_nce``; β = 0 gives ``info_nce``."""
    return _both(image_embeddings, text_embeddings, temperature, (beta1, beta2), decoupled=False)


def dhn_nce(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    temperature: float = 0.6,
    beta1: float = 0.15,
    beta2: float = 0.15,
) -> Tensor:
    """Decoupled hard-negative noise-contrastive estimation, the paper's own.

    Args:
        image_embeddings: (B, D), row i belongs to row i of the texts; any norm.
        text_embeddings: (B, D); any norm.
        temperature: τ > 0.
        beta1: hardness of image-to-text negatives, ≥ 0; 0 gives ``dcl``.
        beta2: hardness of text-to-image negatives, ≥ 0.

    Returns:
        The scalar sum of both directions.

    Raises:
        ValueError: shapes differ, or fewer than two pairs.
    """
    return _both(image_embeddings, text_embeddings, temperature, (beta1, beta2), decoupled=True)


def contrast(
    name: str, image_embeddings: Tensor, text_embeddings: Tensor, temperature: float, beta: float
) -> Tensor:
    """The loss called ``name`` in ``LOSSES``, with one β for both directions."""
    decoupled, hard = name in ("dhn-nce", "dcl"), name in ("dhn-nce", "hn-nce")
    betas = (beta, beta) if hard else (0.0, 0.0)
    return _both(image_embeddings, text_embeddings, temperature, betas, decoupled)


def _both(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    temperature: float,
    betas: tuple[float, float],
    decoupled: bool,
) -> Tensor:
    if image_embeddings.shape != text_embeddings.shape or image_embeddings.ndim != 2:
        raise ValueError(
            "expected two (B, D) arrays of one shape, got "
            f"{tuple(image_embeddings.shape)} and {tuple(text_embeddings.shape)}"
        )
    if image_embeddings.shape[0] < 2:
        raise ValueError("a contrastive loss needs at least two pairs in a batch")
    dtype = torch.promote_types(image_embeddings.dtype, torch.float32)
    images = F.normalize(image_embeddings.to(dtype), dim=1)
    texts = F.normalize(text_embeddings.to(dtype), dim=1)
    similarity = images @ texts.T / temperature
    one = _one_direction(similarity, betas[0], decoupled)
    return one + _one_direction(similarity.T, betas[1], decoupled)


def _one_direction(similarity: Tensor, beta: float, decoupled: bool) -> Tensor:
    pairs = similarity.shape[0]
    itself = torch.eye(pairs, dtype=torch.bool, device=similarity.device)
    positive = similarity.diagonal()
    # log Σ w exp(s) = log(B−1) + lse((1+β)s) − lse(βs), both over the negatives
    hard = torch.logsumexp(((1 + beta) * similarity).masked_fill(itself, -torch.inf), 1)
    norm = torch.logsumexp((beta * similarity).masked_fill(itself, -torch.inf), 1)
    denominator = math.log(pairs - 1) + hard - norm
    if not decoupled:
        denominator = torch.logaddexp(positive, denominator)
    return (denominator - positive).mean()
