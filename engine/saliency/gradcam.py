"""GradCAM (Selvaraju et al., ICCV 2017) on a ViT's patch tokens: the paper's baseline."""

import torch
from torch import Tensor

from medclipsam.engine.backends.handover import upload
from medclipsam.engine.config import SaliencyConfig
from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.saliency.masks import scale_map
from medclipsam.engine.saliency.question import Maps, Question, ask
from medclipsam.engine.saliency.rows import Fetch, Round, stack_maps


def gradcam(model: ClipEncoder, images: Tensor, prompts: Tensor) -> Tensor:
    """ReLU of the channel maps weighted by their mean gradient, min–max scaled.

    Args and result as ``gscorecam``; no masked image is embedded.
    """
    return stack_maps(model, (probe_gradcam(model, q) for q in ask(model, images, prompts)))


def probe_gradcam(model: ClipEncoder, question: Question) -> Fetch:
    """One image."""
    prompts = upload(question.prompts, question.image.device)
    _, maps, importance = model.features(question.image[None], prompts)
    cams = torch.einsum("pc,chw->phw", importance[0], maps[0])

    def finish(cams: Tensor) -> Maps:
        return lambda: scale_map(cams[question.wanted].relu())

    return Fetch((cams,), finish)


def probe(model: ClipEncoder, question: Question, config: SaliencyConfig) -> Round:
    """The method as settings name it."""
    return probe_gradcam(model, question)
