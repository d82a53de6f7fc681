"""Train a SAM-shaped model to turn box prompts into masks, through kills.

Refuses to know where images come from and what becomes of the weights.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medclipsam.engine.backends.arithmetic import make_autocast
from medclipsam.engine.errors import ConfigError
from medclipsam.train.checkpoint import Checkpoints
from medclipsam.train.patients import split_groups
from medclipsam.train.sam.data import SamSamples
from medclipsam.train.sam.encoder import embed_images
from medclipsam.train.sam.fitting import Fitting, Judged
from medclipsam.train.sam.settings import SamTraining

CPU = torch.device("cpu")
SPOKEN_EVERY = 50  # steps

Log = Callable[[str], None]


def train_sam(
    sam: nn.Module,
    samples: SamSamples,
    training: SamTraining,
    folder: Path,
    device: torch.device = CPU,
    log: Log = print,
) -> list[Judged]:
    """Fit a ``segment_anything.modeling.Sam`` in place; it keeps the weights judged best.

    The same weights, samples, settings, machine and thread count give the same bits, however
    often the training was killed and called again in between.

    Args:
        sam: the model, with square input of side S.
        folder: for checkpoints and the embeddings of a frozen encoder.
        log: takes lines of progress.

    Returns:
        Every judgement, in order, that of the weights before the first step among them.

    Raises:
        ConfigError: ``folder`` holds another training; too few images; the loss is not finite.
        OutputError: the disk is full.
    """
    learn, judge = split_samples(samples, training)
    identity = _identify(sam, samples, training, device)
    checkpoints = Checkpoints(folder, identity, log)
    found = checkpoints.load()
    sam.to(device)
    with _deterministic(device):
        cache = None
        if not training.trains_encoder:
            log("the encoder is frozen: images are embedded once, their brightness does not vary")
            made = {k: v for k, v in identity.items() if k != "training"}
            made["precision"] = training.precision
            autocast = make_autocast(device, training.precision)
            cache = embed_images(sam, samples, autocast, folder, made, log)
        fitting = Fitting(sam, samples, learn, judge, training, device, cache)
        if found:
            fitting.restore(found[1])
            log(f"resuming after {found[0]} of {training.steps} steps")
        _run(fitting, found[0] if found else 0, checkpoints, log)
        fitting.take_best()
    return fitting.history


def _run(fitting: Fitting, start: int, checkpoints: Checkpoints, log: Log) -> None:
    training, began, recent = fitting.training, time.monotonic(), []
    if len(fitting.judge) and not fitting.history:
        _validate(fitting, 0, log)
    for step in range(start, training.steps):
        recent.append(fitting.step(step))
        done = step + 1
        last = done == training.steps
        if done % SPOKEN_EVERY == 0 or last:
            loss, dice = np.mean(recent, 0)
            log(
                f"sam step {done}/{training.steps} loss {loss:.4f} dice {dice:.4f} "
                f"{time.monotonic() - began:.0f} s"
            )
            recent = []
        judged = len(fitting.judge) and (done % training.validate_every == 0 or last)
        if judged:
            _validate(fitting, done, log)
        if judged or last or done % training.save_every == 0:
            checkpoints.save(done, fitting.state())


def _validate(fitting: Fitting, done: int, log: Log) -> None:
    found = fitting.validate(done)
    log(f"validation after {done}: DSC {found.exact:.4f}, with jittered boxes {found.jittered:.4f}")


def split_samples(samples: SamSamples, training: SamTraining) -> tuple[np.ndarray, np.ndarray]:
    """Images to learn from and images to judge on, int64 (n,) each; groups are never torn.

    Raises:
        ConfigError: there is one group only.
    """
    count = len(samples.images)
    if not training.val_share:
        return np.arange(count), np.arange(0)
    if len(set(samples.groups)) < 2:
        raise ConfigError(
            "a part of the images is to be judged on, but all are of one patient or equal; add "
            "others, or set --val-share 0"
        )
    present = np.ones((count, 1), bool)
    return split_groups(samples.groups, present, ["mask"], training.val_share, training.seed)


def _identify(
    sam: nn.Module, samples: SamSamples, training: SamTraining, device: torch.device
) -> dict[str, Any]:
    """What decides the result."""
    weights = hashlib.sha256()
    for name, tensor in sam.state_dict().items():
        weights.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    settings = {k: v for k, v in asdict(training).items() if k != "save_every"}
    return {
        "training": settings,
        "images": len(samples.images),
        "masks": len(samples.masks),
        "data": samples.digest[:16],
        "weights": weights.hexdigest()[:16],
        "device": device.type,
    }


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS may vary
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            yield
    finally:
        torch.use_deterministic_algorithms(before)
