"""Whether a prompt is in the image: the rule, its reasons, and their texts for people.

A target is absent where a stage has nothing to hand on, and where the image is no nearer to
the prompt than the null prompts and the other prompts are (``EngineConfig.presence``).
"""

import numpy as np

NOT_IN_IMAGE, NO_SALIENCY = "not-in-image", "no-saliency"
NO_COMPONENT, EMPTY_MASK = "no-component", "empty-mask"
BELOW_THRESHOLD = "below-threshold"

REASONS = {
    NO_SALIENCY: "no part of the image stands out for this prompt",
    BELOW_THRESHOLD: "no pixel's probability exceeds the threshold",
    NO_COMPONENT: "nothing that stands out is large enough for a box",
    NOT_IN_IMAGE: "the contrast with other prompts is too low",
    EMPTY_MASK: "SAM found nothing inside the boxes",
}


def find_absence(
    contrast: float, least: float | None, saliency: np.ndarray, boxes: np.ndarray
) -> str:
    """Why the stages before SAM hold a target for absent, or nothing.

    Args:
        contrast: see ``Segmentation.contrast``; NaN never decides.
        least: the contrast below which a target is absent, or None.
        saliency: float32 (H, W) in [0, 1].
        boxes: int32 (K, 4) around the components of the refined saliency.
    """
    if not saliency.any():
        return NO_SALIENCY
    if least is not None and contrast < least:
        return NOT_IN_IMAGE
    return "" if len(boxes) else NO_COMPONENT
