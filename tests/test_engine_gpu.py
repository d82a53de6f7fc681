"""The same masks on CUDA as on the CPU; runs where there is a device."""

import numpy as np
import pytest
import torch

from medclipsam.engine.engine import Engine
from medclipsam.engine.metrics import iou
from medclipsam.train.phantoms import PROMPTS, make_phantom

LEAST_IOU = 0.98  # float32 on both; matrix products are summed in another order


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["contrastcam", "gscorecam"])
def test_cuda_equals_cpu(method):
    settings = {"saliency": {"method": method}}
    here, there = (Engine.open("phantom", d, settings=settings) for d in ("cpu", "cuda"))
    for seed in range(6):
        phantom = make_phantom(2_000_000 + seed, "mri", ("tumor", "ventricles"))
        rgb = np.repeat((phantom.pixels * 255).astype(np.uint8)[..., None], 3, 2)
        wanted = {target: PROMPTS[target] for target in phantom.masks}
        ours, theirs = here.segment(rgb, wanted), there.segment(rgb, wanted)
        for target in wanted:
            assert iou(theirs[target].mask, ours[target].mask) >= LEAST_IOU
