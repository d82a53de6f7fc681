"""What is asked of one image, and what is answered."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from medclipsam.engine.backends.handover import fetch
from medclipsam.engine.encoder import ClipEncoder

Maps = Callable[[], Tensor]  # → float32 (Q, h, w) in [0, 1]; arithmetic, for any CPU thread


@dataclass(frozen=True)
class Question:
    """One encoded image and what is asked of it. Pixels lie on the device, the rest on the CPU.

    Attributes:
        image: float32 (3, S, S), normalised.
        embedding: float32 (D,), the image's, of length one.
        prompts: float32 (P, D) unit text embeddings; each is a rival of the others.
        nulls: float32 (N, D) unit embeddings of null prompts; N may be 0 except for
            contrastcam.
        wanted: int64 (Q,), the prompts that get a map.
    """

    image: Tensor
    embedding: Tensor
    prompts: Tensor
    nulls: Tensor
    wanted: Tensor


@dataclass(frozen=True)
class Answer:
    """What the model says of one image.

    Attributes:
        make: what is left to do for the maps.
        wanted: int64 (Q,), the prompts that have one.
        contrast: float32 (P,), see ``medclipsam.engine.saliency.contrast.contrasts``.
    """

    make: Maps
    wanted: Tensor
    contrast: Tensor

    @cached_property
    def saliency(self) -> Tensor:
        """float32 (Q, h, w) in [0, 1] over the whole square input."""
        return self.make()


def ask(
    model: ClipEncoder, images: Tensor, prompts: Tensor, nulls: Tensor | None = None
) -> Iterator[Question]:
    """The same of every image: a map for each prompt.

    Args:
        images: float32 (B, 3, S, S) RGB in [0, 1].
        prompts: float32 (P, D) unit text embeddings.
        nulls: float32 (N, D), by default none.
    """
    pixels = model.normalise(images)
    texts, given = fetch(model.device, prompts, prompts[:0] if nulls is None else nulls)
    (embeddings,) = fetch(model.device, model.embed(pixels))
    for image, embedding in zip(pixels, embeddings, strict=True):
        yield Question(image, embedding, texts, given, torch.arange(len(texts)))
