"""Fit a residual U-Net to samples and keep its best epoch. Refuses to know runs and files."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medclipsam.engine.errors import ConfigError
from medclipsam.engine.fit import normalise_rgb
from medclipsam.engine.unet.model import UnetConfig, build_unet
from medclipsam.train.schedule import warmup_cosine
from medclipsam.train.unet.augmentation import augment
from medclipsam.train.unet.data import TaskData
from medclipsam.train.unet.loss import pair_weights, task_loss
from medclipsam.train.unet.settings import UnetTraining

Log = Callable[[str], None]


@dataclass(frozen=True)
class Epoch:
    """Figures of one pass.

    Attributes:
        loss: mean over its steps.
        dice: mean over the labels.
        by_label: label → mean DSC over the samples to judge on of which the label is known;
            1 where both masks are empty, 0 where one is.
    """

    number: int
    loss: float
    dice: float
    by_label: dict[str, float]


@dataclass(frozen=True)
class Trained:
    """A network with the weights of its best epoch, and how it came about."""

    config: UnetConfig
    net: nn.Module
    epochs: tuple[Epoch, ...]
    best: Epoch


def train_unet(
    data: TaskData,
    split: tuple[np.ndarray, np.ndarray],
    config: UnetConfig,
    training: UnetTraining,
    device: torch.device,
    log: Log = print,
) -> Trained:
    """Fit a new network; deterministic for one seed, machine and thread count.

    Args:
        split: numbers of the samples to learn from and to judge on.
        config: mean and std are replaced by those of the samples to learn from.

    Raises:
        ConfigError: the loss is not finite.
    """
    learn, judge = split
    mean, std = _measure(data, learn)
    config = replace(config, mean=mean, std=std)
    torch.manual_seed(training.seed)
    net = build_unet(config).to(device)
    steps = training.epochs * -(-len(learn) // training.batch)
    fitting = _Fitting(data, learn, config, training, net, device, steps)
    epochs: list[Epoch] = []
    best, weights = None, {}
    started = time.monotonic()
    with _deterministic(device):
        for number in range(1, training.epochs + 1):
            loss = fitting.run_epoch()
            by_label = judge_unet(net, data, judge, config, training.batch, device)
            epoch = Epoch(number, loss, float(np.mean(list(by_label.values()))), by_label)
            epochs.append(epoch)
            log(_line(epoch, training.epochs, time.monotonic() - started))
            if best is None or epoch.dice > best.dice:
                best = epoch
                weights = {k: v.detach().clone() for k, v in net.state_dict().items()}
    assert best is not None
    net.load_state_dict(weights)
    log(f"best epoch: {best.number}, DSC {best.dice:.4f}")
    return Trained(config, net.eval(), tuple(epochs), best)


def _deterministic(device: torch.device) -> Any:
    if device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)


def _line(epoch: Epoch, of: int, seconds: float) -> str:
    each = ", ".join(f"{label} {value:.4f}" for label, value in epoch.by_label.items())
    return (
        f"epoch {epoch.number}/{of} loss {epoch.loss:.4f} DSC {epoch.dice:.4f} ({each}) "
        f"{seconds:.0f} s"
    )


def _measure(data: TaskData, part: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of RGB in [0, 1], rounded so that they read well."""
    sums, squares = np.zeros(3), np.zeros(3)
    for n in part:
        pixels = data.images[n].reshape(-1, 3) / 255.0
        sums += pixels.mean(0)
        squares += (pixels**2).mean(0)
    mean = sums / len(part)
    std = np.sqrt(np.maximum(squares / len(part) - mean**2, 0))
    return (
        tuple(round(float(m), 4) for m in mean),
        tuple(max(round(float(s), 4), 1e-3) for s in std),
    )


class _Fitting:
    """Network, optimiser and the random order of samples, over all epochs."""

    def __init__(
        self,
        data: TaskData,
        learn: np.ndarray,
        config: UnetConfig,
        training: UnetTraining,
        net: nn.Module,
        device: torch.device,
        steps: int,
    ):
        self._data, self._learn, self._config, self._training = data, learn, config, training
        self._net, self._device = net, device
        self._weights = np.zeros(data.known.shape, np.float32)
        self._weights[learn] = pair_weights(
            data.known[learn], data.confidence[learn], training.by_confidence
        )
        self._rng = np.random.default_rng([11, training.seed])
        self._generator = torch.Generator().manual_seed(training.seed)
        self._optimizer = torch.optim.AdamW(
            net.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
        )
        warmup = round(training.warmup * steps)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: warmup_cosine(step, warmup, steps)
        )

    def run_epoch(self) -> float:
        """Learn from every sample once; returns the mean loss."""
        self._net.train()
        order = self._rng.permutation(self._learn)
        losses = []
        for start in range(0, len(order), self._training.batch):
            losses.append(self._step(np.sort(order[start : start + self._training.batch])))
        return float(np.mean(losses))

    def _step(self, chosen: np.ndarray) -> float:
        images, masks = augment(
            to_pixels(self._data.images[chosen]),
            torch.from_numpy(self._data.masks[chosen]).float(),
            self._training.augmentation,
            self._generator,
        )
        pixels = normalise_rgb(images, self._config.mean, self._config.std).to(self._device)
        loss = task_loss(
            self._net(pixels),
            masks.to(self._device),
            torch.from_numpy(self._weights[chosen]).to(self._device),
            torch.from_numpy(self._data.known[chosen]).float().to(self._device),
        )
        if not torch.isfinite(loss):
            raise ConfigError(
                f"the loss became {loss.item()}; lower --learning-rate "
                f"(now {self._training.learning_rate:g})"
            )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._net.parameters(), self._training.clip_norm)
        self._optimizer.step()
        self._schedule.step()
        return loss.item()


@torch.inference_mode()
def judge_unet(
    net: nn.Module,
    data: TaskData,
    part: np.ndarray,
    config: UnetConfig,
    batch: int,
    device: torch.device,
) -> dict[str, float]:
    """label → mean DSC over samples of which it is known, see ``Epoch``; 0 where there are
    none."""
    net.eval()
    levels = torch.tensor(config.thresholds).logit()[:, None, None]
    scores: list[Tensor] = []
    for start in range(0, len(part), batch):
        chosen = part[start : start + batch]
        pixels = normalise_rgb(to_pixels(data.images[chosen]), config.mean, config.std)
        found = net(pixels.to(device)).cpu() > levels
        truth = torch.from_numpy(data.masks[chosen]) > 0
        both, total = (found & truth).sum((2, 3)), found.sum((2, 3)) + truth.sum((2, 3))
        scores.append(torch.where(total > 0, 2 * both / total.clamp_min(1), 1.0))
    known = torch.from_numpy(data.known[part])
    sums = (torch.cat(scores) * known).sum(0) / known.sum(0).clamp_min(1)
    return dict(zip(config.labels, sums.tolist(), strict=True))


def to_pixels(images: np.ndarray) -> Tensor:
    """uint8 (B, S, S, 3) → float (B, 3, S, S) in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
