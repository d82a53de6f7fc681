"""Whether a prompt is in the image: the rule, its reasons, and their texts for people.

It is asked twice. Right after ``encode_image`` the contrast is known, one forward an image:
where the image is no nearer to a prompt than the null prompts and the other prompts are
(``EngineConfig.presence``), nothing further is computed for it. Later, a target is absent
where a stage has nothing to hand on.
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


def is_present(contrast: np.ndarray, least: float | None) -> np.ndarray:
    """Which prompts the image may show, before anything is located: bool (P,).

    Args:
        contrast: float (P,), see ``Segmentation.contrast``; NaN never decides.
        least: the contrast below which a target is absent, or None.
    """
    if least is None:
        return np.ones(contrast.shape, bool)
    return ~(contrast < least)


def find_absence(present: bool, saliency: np.ndarray, boxes: np.ndarray) -> str:
    """Why the stages before SAM hold a target for absent, or nothing.

    Args:
        present: see ``is_present``; it is asked first, so its reason goes before the others.
        saliency: float32 (H, W) in [0, 1].
        boxes: int32 (K, 4) around the components of the refined saliency.
    """
    if not present:
        return NOT_IN_IMAGE
    if not saliency.any():
        return NO_SALIENCY
    return "" if len(boxes) else NO_COMPONENT
