"""gScoreCAM (Chen et al., "gScoreCAM: What objects is CLIP looking at?", ACCV 2022)."""

import torch
from torch import Tensor

from medclipsam.engine.backends.handover import upload
from medclipsam.engine.config import SaliencyConfig
from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.saliency.masks import channel_masks, scale_map
from medclipsam.engine.saliency.question import Maps, Question, ask
from medclipsam.engine.saliency.rows import Fetch, Probe, Round, stack_maps


def gscorecam(model: ClipEncoder, images: Tensor, prompts: Tensor, k: int = 300) -> Tensor:
    """Saliency as published, but for the layer (the encoder's ``target``).

    1. The importance of a channel is the mean gradient of the logit over its patches.
    2. The k most important channels (signed) are scored: the channel's map, min–max
       scaled, multiplies the normalised image; its score is the logit of that image.
    3. Weights are a softmax over all channels of the scores, 0 for those not chosen.
    4. The map is ReLU(Σ w A), min–max scaled.

    Args:
        model: the CLIP to ask.
        images: float32 (B, 3, S, S) RGB in [0, 1].
        prompts: float32 (P, D) unit text embeddings.
        k: channels scored per prompt; more than there are means all.

    Returns:
        float32 (B, P, g, g) in [0, 1], all zero where no channel speaks for the prompt.
    """
    return stack_maps(model, (probe_gscorecam(model, q, k) for q in ask(model, images, prompts)))


def probe_gscorecam(model: ClipEncoder, question: Question, k: int) -> Fetch:
    """Rows of one image.

    Channel masks do not depend on the prompt, so with several prompts the union of their
    channels is embedded, once: of those that a map is wanted for. Which these are does not
    change a byte of the map of another one.
    """
    image, prompts, wanted = question.image, question.prompts, question.wanted.tolist()
    _, (activation,), (gradients,) = model.features(image[None], upload(prompts, image.device))

    def choose(importance: Tensor, cells: Tensor) -> Probe:
        chosen = importance.topk(min(k, len(cells)), dim=1).indices[wanted]
        union = torch.unique(chosen)
        index = upload(union, image.device)

        def make(start: int, stop: int) -> Tensor:
            shown = activation.index_select(0, index[start:stop])
            return image[None] * channel_masks(shown, model.image_size)

        def finish(rows: Tensor) -> Maps:
            def maps() -> Tensor:
                logits, cams = model.logit_scale * rows @ prompts.T, []
                for prompt, channels in zip(wanted, chosen, strict=True):
                    scores = torch.zeros(len(cells))
                    scores[channels] = logits[torch.searchsorted(union, channels), prompt]
                    cams.append(torch.einsum("c,chw->hw", scores.softmax(0), cells))
                return scale_map(torch.stack(cams).relu())

            return maps

        return Probe(len(union), make, finish)

    return Fetch((gradients, activation), choose)


def probe(model: ClipEncoder, question: Question, config: SaliencyConfig) -> Round:
    """The method as settings name it."""
    return probe_gscorecam(model, question, config.k)
