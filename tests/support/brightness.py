"""A task model without training: what is brighter, or darker, than a level. Its masks are known
from the picture alone, so that runs made with it have a truth to be compared with."""

import numpy as np
import torch

from medclipsam.engine.unet.model import UnetConfig, write_task_model
from medclipsam.engine.unet.pipeline import UnetPipeline
from medclipsam.engine.unet.predictor import Predictor

CPU = torch.device("cpu")
LEVELS = {"bright": 0.35, "dark": 0.2}
SLOPE = 40.0


def brightness(pixels):
    """(B, 3, S, S) in [0, 1] → (B, 2, S, S) logits."""
    grey = torch.nn.functional.avg_pool2d(
        pixels.mean(1, keepdim=True), 5, 1, 2, count_include_pad=False
    )
    return SLOPE * torch.cat([grey - LEVELS["bright"], LEVELS["dark"] - grey], 1)


def open_brightness(folder, side=64, batch=3, fit="pad", graph=brightness):
    """A ``Predictor`` whose network is ``brightness``; the folder's weights mean nothing."""
    config = UnetConfig(
        tuple(LEVELS), side, fit, (0.0,) * 3, (1.0,) * 3, channels=(4, 4), strides=(2,)
    )
    net = torch.nn.Linear(1, 1)
    model = write_task_model(folder, config, net, {})
    return Predictor(model, UnetPipeline(graph, config, CPU, batch), threads=2)


def tiny_config(**settings):
    """Of a network that trains in seconds."""
    sizes = {"image_size": 32, "channels": (8, 16, 16), "strides": (2, 2)}
    return UnetConfig(**{"labels": tuple(LEVELS), **sizes, **settings})


def grey_to_rgb(pixels):
    """float (H, W) in [0, 1] → uint8 (H, W, 3)."""
    return np.repeat((pixels * 255 + 0.5).astype(np.uint8)[..., None], 3, 2)
