"""GradCAM (Selvaraju et al., ICCV 2017) on a ViT's patch tokens: the paper's baseline."""

import torch
from torch import Tensor

from medclipsam.engine.config import SaliencyConfig
from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.saliency.masks import scale_map
from medclipsam.engine.saliency.question import Question, ask
from medclipsam.engine.saliency.rows import Probe, no_rows, stack_maps


def gradcam(model: ClipEncoder, images: Tensor, prompts: Tensor) -> Tensor:
    """ReLU of the channel maps weighted by their mean gradient, min–max scaled.

    Args and result as ``gscorecam``; no masked image is embedded.
    """
    return stack_maps(model, (probe_gradcam(model, q) for q in ask(model, images, prompts)))


def probe_gradcam(model: ClipEncoder, question: Question) -> Probe:
    """One image."""
    prompts = question.prompts.to(question.image.device)
    _, maps, importance = model.features(question.image[None], prompts)
    cam = torch.einsum("pc,chw->phw", importance[0], maps[0])
    return no_rows(lambda: scale_map(cam.cpu()[question.wanted].relu()))


def probe(model: ClipEncoder, question: Question, config: SaliencyConfig) -> Probe:
    """The method as settings name it."""
    return probe_gradcam(model, question)
