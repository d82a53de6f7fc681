"""GradCAM (Selvaraju et al., ICCV 2017) on a ViT's patch tokens: the paper's baseline."""

from __future__ import annotations

import torch
from torch import Tensor

from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.saliency.masks import scale_map


def gradcam(model: ClipEncoder, images: Tensor, prompts: Tensor) -> Tensor:
    """ReLU of the channel maps weighted by their mean gradient, min–max scaled.

    Args and result as ``gscorecam``; no masked image is embedded.
    """
    _, maps, importance = model.features(model.normalise(images), prompts)
    cam = torch.einsum("bpc,bchw->bphw", importance, maps).relu()
    return scale_map(cam)
