"""What the phantom bundle knows of its own scores: when a target is absent, when a mask is good.

Both are found on phantoms that are neither trained on nor measured.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from medclipsam.engine.config import ConfidenceConfig
from medclipsam.engine.engine import Engine
from medclipsam.engine.evaluation.metrics import dice
from medclipsam.engine.fit import fit_image, make_fit, normalise_rgb
from medclipsam.engine.quality import features
from medclipsam.engine.saliency.contrast import contrasts
from medclipsam.engine.types import Prompts, Segmentation
from medclipsam.engine.weights.bundle import WEIGHTS
from medclipsam.engine.weights.models import Clip, build_clip, load_weights
from medclipsam.train.phantoms.phantoms import NULL_PROMPTS, PROMPTS, TARGETS, Phantom, make_phantom

CALIBRATION = range(500_000, 500_300)
CONFIDENCE = range(600_000, 600_450)
GOOD = 0.7  # DSC with the target from which on a mask counts as good
NEWTON_STEPS = 50


def calibrate_presence(folder: Path) -> float:
    """The contrast that best tells phantoms with a target from those without.

    Over every phantom of ``CALIBRATION``, asked for both targets of its modality together,
    the threshold of the largest balanced accuracy; none of these seeds is trained or
    measured on. It serves a single prompt too: an image without any target lies far below
    it, and one with the other target only cannot be told apart unless that one is named.
    """
    clip = build_clip(folder)
    load_weights(clip.model, folder / WEIGHTS)
    present: list[float] = []
    absent: list[float] = []
    with torch.inference_mode():
        texts = dict(zip(PROMPTS, _encode(clip, [*PROMPTS.values()]), strict=True))
        nulls = _encode(clip, list(NULL_PROMPTS))
        for seed in CALIBRATION:
            phantom = make_phantom(seed)
            height, width = phantom.pixels.shape
            fit = make_fit(height, width, clip.image_size, "squash")
            square = torch.from_numpy(fit_image(phantom.rgb, fit))
            pixels = normalise_rgb(square.permute(2, 0, 1)[None].float() / 255, clip.mean, clip.std)
            image = F.normalize(clip.model.encode_image(pixels), dim=-1)[0]  # type: ignore[operator]
            wanted = TARGETS[phantom.modality]
            own = torch.stack([texts[target] for target in wanted])
            for target, contrast in zip(wanted, contrasts(own, nulls, image).tolist(), strict=True):
                (present if target in phantom.masks else absent).append(contrast)
    yes, no = np.array(present), np.array(absent)
    candidates = np.sort(np.concatenate([yes, no]))
    balanced = np.array([(yes >= c).mean() + (no < c).mean() for c in candidates])
    return round(float(np.median(candidates[balanced == balanced.max()])), 4)


def _encode(clip: Clip, texts: list[str]) -> torch.Tensor:
    return F.normalize(clip.model.encode_text(clip.tokenizer(texts)), dim=-1)  # type: ignore[operator]


def calibrate_confidence(folder: Path, threads: int | None = None) -> ConfidenceConfig:
    """Logistic model of whether a mask reaches a DSC of 0.7, from the figures it comes with.

    Fitted on every mask that the bundle draws on the phantoms of ``CONFIDENCE``, of which
    each is asked for the two targets of its modality, together and alone. Where these masks
    are all good or all bad, nothing can be learned: the uncalibrated default.
    """
    engine = Engine.open(str(folder), device="cpu", threads=threads)
    drawn = [pair for seed in CONFIDENCE for pair in ask_phantom(engine, make_phantom(seed))]
    good = np.array([score >= GOOD for _, score in drawn])
    if good.all() or not good.any():
        return ConfidenceConfig()
    figures = [vars(segment) for segment, _ in drawn]
    scale = float(np.std([each["contrast"] for each in figures])) or 1.0
    x = np.array([features(each, scale) for each in figures])
    bias, iou, stability, agreed, contrast = fit_logistic(x, good).round(4).tolist()
    return ConfidenceConfig(bias, iou, stability, agreed, contrast, round(scale, 6))


def ask_phantom(engine: Engine, phantom: Phantom) -> Iterator[tuple[Segmentation, float]]:
    """Masks drawn for the modality's two targets, together and alone, and their true DSC."""
    wanted = TARGETS[phantom.modality]
    texts: dict[str, tuple[str, ...]] = {target: (PROMPTS[target],) for target in wanted}
    asked = [Prompts(texts), *(Prompts({target: text}) for target, text in texts.items())]
    for segments in engine.pipeline.segment([phantom.rgb] * len(asked), asked, maps=False):
        for target, segment in segments.items():
            if segment.status == "done":
                yield segment, dice(segment.mask, phantom.mask(target))


def fit_logistic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bias and weights of the logistic regression of bool (N,) ``y`` on (N, D) ``x``.

    Minimises the sum of log losses plus half the squared weights (not the bias), as
    scikit-learn does at C = 1, by Newton steps in float64.
    """
    design = np.column_stack([np.ones(len(x)), x])
    penalty = np.eye(design.shape[1])
    penalty[0, 0] = 0.0
    beta = np.zeros(design.shape[1])
    for _ in range(NEWTON_STEPS):
        p = 1 / (1 + np.exp(-design @ beta))
        gradient = design.T @ (p - y) + penalty @ beta
        hessian = (design * (p * (1 - p))[:, None]).T @ design + penalty
        beta -= np.linalg.solve(hessian, gradient)
    return beta
