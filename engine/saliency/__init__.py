"""Where in the image the prompt is: one interface, several methods.

Another method is one more file with a function of the same shape and one more line in
``compute_saliency``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.saliency.contrastcam import contrastcam
from medclipsam.engine.saliency.gradcam import gradcam
from medclipsam.engine.saliency.gscorecam import gscorecam

__all__ = ["SaliencyConfig", "compute_saliency", "contrastcam", "gradcam", "gscorecam"]

METHODS = ("gscorecam", "contrastcam", "gradcam")


@dataclass(frozen=True)
class SaliencyConfig:
    """Which method, and how.

    Attributes:
        method: ``gscorecam`` (the paper), ``contrastcam`` (ours) or ``gradcam`` (baseline).
        k: channels scored per prompt by gscorecam.
        target: layer norm of the block whose tokens are the channels: ``norm1``, or
            ``norm2`` as published, where all gradients of patch tokens are exactly 0.
        block: transformer block, counted from 0 or back from −1.
        rows: masked images per forward batch.
        blur: deviation of contrastcam's neutral fill, as a share of the input's side.
        spot: deviation of contrastcam's spots in cells.
        ridge: contrastcam's regularisation, relative to the mean row energy.
    """

    method: Literal["gscorecam", "contrastcam", "gradcam"] = "gscorecam"
    k: int = 300
    target: Literal["norm1", "norm2"] = "norm1"
    block: int = -1
    rows: int = 64
    blur: float = 0.125
    spot: float = 1.0
    ridge: float = 1.0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(
                f"saliency.method must be one of {', '.join(METHODS)}, got {self.method!r}"
            )
        if self.target not in ("norm1", "norm2"):
            raise ConfigError(f"saliency.target must be norm1 or norm2, got {self.target!r}")
        for name in ("k", "rows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"saliency.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("blur", "spot", "ridge"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"saliency.{name} must be positive, got {getattr(self, name)}")


def compute_saliency(
    model: ClipEncoder, images: Tensor, prompts: Tensor, nulls: Tensor, config: SaliencyConfig
) -> Tensor:
    """Saliency of P prompts in B images.

    Args:
        model: the CLIP to ask.
        images: float32 (B, 3, S, S) RGB in [0, 1].
        prompts: float32 (P, D) unit text embeddings.
        nulls: float32 (N, D) unit embeddings of null prompts; N may be 0 except for
            contrastcam.
        config: which method, and how.

    Returns:
        float32 (B, P, g, g) in [0, 1].
    """
    if config.method == "gscorecam":
        return gscorecam(model, images, prompts, config.k)
    if config.method == "gradcam":
        return gradcam(model, images, prompts)
    return contrastcam(model, images, prompts, nulls, config.blur, config.spot, config.ridge)
