"""The same masks on CUDA as on the CPU; runs where there is a device."""

import numpy as np
import pytest
import torch

from medclipsam.engine.engine import Engine
from medclipsam.engine.evaluation.metrics import iou
from medclipsam.train.phantoms.phantoms import PROMPTS, make_phantom

LEAST_IOU = {"fp32": 0.98, "bf16": 0.9, "fp16": 0.95}  # against float32 on the CPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", LEAST_IOU)
@pytest.mark.parametrize("method", ["contrastcam", "gscorecam"])
def test_cuda_equals_cpu(method, precision):
    settings = {"saliency": {"method": method}}
    here = Engine.open("phantom", "cpu", settings=settings)
    there = Engine.open("phantom", "cuda", settings={**settings, "precision": precision})
    for seed in range(6):
        phantom = make_phantom(2_000_000 + seed, "mri", ("tumor", "ventricles"))
        rgb = np.repeat((phantom.pixels * 255).astype(np.uint8)[..., None], 3, 2)
        wanted = {target: PROMPTS[target] for target in phantom.masks}
        ours, theirs = here.segment(rgb, wanted), there.segment(rgb, wanted)
        for target in wanted:
            assert iou(theirs[target].mask, ours[target].mask) >= LEAST_IOU[precision]
