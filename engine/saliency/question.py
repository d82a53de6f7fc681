"""What is asked of one image, and what is answered."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Question:
    """One image and what is asked of it.

    Attributes:
        image: float32 (3, S, S) RGB in [0, 1].
        prompts: float32 (P, D) unit text embeddings.
        nulls: float32 (N, D) unit embeddings of null prompts; N may be 0 except for
            contrastcam.
    """

    image: Tensor
    prompts: Tensor
    nulls: Tensor


@dataclass(frozen=True)
class Answer:
    """What the model says of one image.

    Attributes:
        saliency: float32 (P, h, w) in [0, 1] over the whole square input.
        contrast: float32 (P,), see ``medclipsam.engine.saliency.contrast.contrasts``.
    """

    saliency: Tensor
    contrast: Tensor
