"""Gradients of a contrastive loss over a batch that is too large to be held at once.

The loss sees every pair of the batch, of all ranks; the towers see a part at a time. First
all embeddings are made without a graph, then the loss gives their gradients, then each part
is embedded once more and its gradients are passed on (Gao 2021, "GradCache"). What the towers
draw at random, such as dropout, is the same both times. The result is that of one large batch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from medclipsam.engine.backends.arithmetic import Autocast
from medclipsam.train.ranks import Ranks

Loss = Callable[[Tensor, Tensor], Tensor]


def add_gradients(
    model: Any,
    pixels: Tensor,
    tokens: Tensor,
    loss: Loss,
    part: int,
    ranks: Ranks,
    autocast: Autocast,
    scale: float = 1.0,
) -> float:
    """Add the gradients of this rank's pairs to ``model``; the sum over ranks is the batch's.

    Args:
        model: an ``open_clip.CustomTextCLIP``.
        pixels: (B, 3, S, S), this rank's.
        tokens: (B, L), this rank's.
        loss: (N, D), (N, D) → scalar, over the pairs of all ranks.
        part: pairs embedded at once.
        scale: the gradients', for fp16.

    Returns:
        The loss of the whole batch.
    """
    parts = list(zip(pixels.split(part), tokens.split(part), strict=True))
    if len(parts) == 1:
        rows = _embed(model, *parts[0], autocast)
        value, gradients = _gradients(*rows, loss, ranks, scale)
        torch.autograd.backward(rows, gradients)
        return value
    states, made = [], []
    with torch.no_grad():
        for each in parts:
            states.append(_random_state(pixels.device))
            made.append(_embed(model, *each, autocast))
    images, texts = (torch.cat(rows) for rows in zip(*made, strict=True))
    value, gradients = _gradients(images, texts, loss, ranks, scale)
    cached = zip(*(gradient.split(part) for gradient in gradients), strict=True)
    for each, state, own in zip(parts, states, cached, strict=True):
        with _replayed(state, pixels.device):
            rows = _embed(model, *each, autocast)
        torch.autograd.backward(rows, own)
    return value


def _embed(model: Any, pixels: Tensor, tokens: Tensor, autocast: Autocast) -> tuple[Tensor, Tensor]:
    with autocast():
        images, texts = model.encode_image(pixels), model.encode_text(tokens)
    return images.float(), texts.float()


def _gradients(
    images: Tensor, texts: Tensor, loss: Loss, ranks: Ranks, scale: float
) -> tuple[float, tuple[Tensor, Tensor]]:
    """The loss, and its gradients at this rank's rows."""
    everything = [ranks.gather(rows.detach()).requires_grad_() for rows in (images, texts)]
    with torch.enable_grad():
        value = loss(*everything)
    one, two = torch.autograd.grad(value * scale, everything)
    return value.item(), (ranks.own(one), ranks.own(two))


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return torch.get_rng_state(), cuda


@contextmanager
def _replayed(state: tuple[Tensor, Tensor | None], device: torch.device) -> Iterator[None]:
    """Random numbers as they were at ``state``, inside; outside they go on as before."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], device)
        yield
