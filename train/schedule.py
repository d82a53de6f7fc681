"""How a step is taken: its learning rate and its arithmetic. Refuses to know what is trained."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from medclipsam.engine.backends.pytorch import DTYPES

Autocast = Callable[[], AbstractContextManager[Any]]


def warmup_cosine(step: int, warmup: int, steps: int) -> float:
    """Factor of the learning rate: linear rise, then a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def make_autocast(device: torch.device, precision: str) -> Autocast:
    """Makes a context in which a model computes in ``precision``."""
    if precision == "fp32":
        return nullcontext
    return partial(torch.autocast, device.type, DTYPES[precision])
