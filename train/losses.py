"""Contrastive losses of MedCLIP-SAM (arXiv 2403.20253).

Letters: B pairs in the batch, D embedding width, s_ij = I_i·T_j / τ.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def dhn_nce(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    temperature: float = 0.6,
    beta1: float = 0.15,
    beta2: float = 0.15,
) -> Tensor:
    """Decoupled hard-negative noise-contrastive estimation.

    Image to text: mean_i [ −s_ii + log Σ_{j≠i} W_ij exp(s_ij) ] with
    W_ij = (B−1) · exp(β1 s_ij) / Σ_{k≠i} exp(β1 s_ik); text to image likewise over
    columns with β2. The positive is not in the denominator (decoupled). Computed in
    log space and float32 at least (MedCLIP-SAM, eqs. 1–5).

    Args:
        image_embeddings: (B, D), row i belongs to row i of the texts; any norm.
        text_embeddings: (B, D); any norm.
        temperature: τ > 0.
        beta1: hardness of image-to-text negatives, ≥ 0; 0 gives the decoupled loss.
        beta2: hardness of text-to-image negatives, ≥ 0.

    Returns:
        The scalar sum of both directions.

    Raises:
        ValueError: shapes differ, or fewer than two pairs.
    """
    if image_embeddings.shape != text_embeddings.shape or image_embeddings.ndim != 2:
        raise ValueError(
            "expected two (B, D) arrays of one shape, got "
            f"{tuple(image_embeddings.shape)} and {tuple(text_embeddings.shape)}"
        )
    pairs = image_embeddings.shape[0]
    if pairs < 2:
        raise ValueError("a contrastive loss needs at least two pairs in a batch")
    dtype = torch.promote_types(image_embeddings.dtype, torch.float32)
    images = F.normalize(image_embeddings.to(dtype), dim=1)
    texts = F.normalize(text_embeddings.to(dtype), dim=1)
    similarity = images @ texts.T / temperature
    return _one_direction(similarity, beta1) + _one_direction(similarity.T, beta2)


def _one_direction(similarity: Tensor, beta: float) -> Tensor:
    pairs = similarity.shape[0]
    itself = torch.eye(pairs, dtype=torch.bool, device=similarity.device)
    negatives = similarity.masked_fill(itself, -torch.inf)
    # log Σ W exp(s) = log(B−1) + lse((1+β)s) − lse(βs), both over the negatives
    hard = torch.logsumexp((1 + beta) * negatives, 1)
    norm = torch.logsumexp((beta * similarity).masked_fill(itself, -torch.inf), 1)
    return (math.log(pairs - 1) + hard - norm - similarity.diagonal()).mean()
