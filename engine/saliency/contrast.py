"""A prompt as a contrast: nearer to the image than the null prompts and the other prompts."""

import torch
from torch import Tensor


def contrast_directions(prompts: Tensor, nulls: Tensor, embedding: Tensor) -> Tensor:
    """(P, D): each prompt minus the null nearest to the image and, in equal parts, the mean
    of the other prompts; their products with embeddings are contrasts.

    Args:
        prompts: float32 (P, D) unit text embeddings.
        nulls: float32 (N, D) of null prompts, N ≥ 1.
        embedding: float32 (D,) of the image.
    """
    null = nulls[(nulls @ embedding).argmax()]
    if len(prompts) == 1:
        return prompts - null
    others = (prompts.sum(0) - prompts) / (len(prompts) - 1)
    return prompts - 0.5 * (null + others)


def contrasts(prompts: Tensor, nulls: Tensor, embedding: Tensor) -> Tensor:
    """(P,): cosine to each prompt minus that to the nearest null or other prompt.

    NaN where a prompt stands alone, without null prompts. Args as above; N may be 0.
    """
    own = prompts @ embedding
    rivals = torch.cat([own.repeat(len(own), 1), (nulls @ embedding).repeat(len(own), 1)], 1)
    rivals[:, : len(own)].fill_diagonal_(-torch.inf)
    highest = rivals.amax(1)
    return torch.where(highest.isinf(), torch.nan, own - highest)
