"""Fit a CLIP to image–caption pairs: one contrastive loss, any number of ranks, resumable.

Everything random in a step is drawn from (seed, step, rank), and the order of an epoch from
(seed, epoch): a training that was killed goes on to the very weights of one that was not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from threading import Event
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from medclipsam.engine.backends.arithmetic import make_autocast
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.fit import normalise_rgb
from medclipsam.engine.weights.models import Clip
from medclipsam.train.clip.augmentation import augment
from medclipsam.train.clip.contrast import add_gradients
from medclipsam.train.clip.lora import add_low_rank
from medclipsam.train.clip.settings import ClipTraining
from medclipsam.train.losses import contrast
from medclipsam.train.pairs.prepared import Prepared
from medclipsam.train.ranks import Ranks
from medclipsam.train.schedule import warmup_cosine

SAVE_EVERY = 200  # steps between checkpoints within an epoch


class Watcher:
    """Who is told how a training goes. This one says and keeps nothing, as further ranks do."""

    def step(self, step: int, loss: float, rate: float) -> None:
        """One update was made."""

    def epoch(self, step: int, epoch: int, trainer: ClipTrainer) -> None:
        """An epoch has ended."""

    def save(self, step: int, trainer: ClipTrainer) -> None:
        """The state at ``step`` is worth keeping."""
        trainer.ranks.wait()


@dataclass
class ClipTrainer:
    """One training.

    Attributes:
        clip: changed in place; built from the weights to start from.
        data: the pairs to train on.
        stop: once set, the training ends after the current step, to be resumed.
    """

    clip: Clip
    data: Prepared
    training: ClipTraining
    ranks: Ranks
    stop: Event = field(default_factory=Event)

    def __post_init__(self) -> None:
        training, device = self.training, self.ranks.device
        if training.batch % self.ranks.count:
            raise ConfigError(
                f"a batch of {training.batch} cannot be shared by {self.ranks.count} processes; "
                "choose a multiple"
            )
        if len(self.data) < training.batch:
            raise ConfigError(
                f"{len(self.data)} pairs to train on do not fill a batch of {training.batch}; "
                "lower --batch"
            )
        self.model: Any = self.clip.model.to(device)
        self.tokens = self.clip.tokenizer(list(self.data.captions))
        torch.manual_seed(training.seed)
        if training.lora:
            add_low_rank(self.model, training.lora)
        else:
            self.model.requires_grad_(True)
        self.model.logit_scale.requires_grad_(False)
        self.optimizer = _make_optimizer(self.model, training)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: warmup_cosine(step, training.warmup, self.steps)
        )
        self._autocast = make_autocast(device, training.precision)
        self.scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "fp16")
        average = get_ema_multi_avg_fn(training.ema) if training.ema else None
        self.average = AveragedModel(self.model, multi_avg_fn=average) if average else None

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return len(self.data) // self.training.batch

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.per_epoch * self.training.epochs

    @property
    def validated(self) -> nn.Module:
        """The weights to judge and to keep: the averaged ones, if there are any."""
        return self.average.module if self.average is not None else self.model

    def run(self, watcher: Watcher, start: int = 0) -> bool:
        """Train from step ``start`` on; False if it was stopped."""
        self.model.train()
        for step in range(start, self.steps):
            if self.ranks.any(self.stop.is_set()):
                watcher.save(step, self)
                return False
            loss = self._update(step)
            watcher.step(step, loss, float(self.schedule.get_last_lr()[0]))
            if (step + 1) % self.per_epoch == 0:
                watcher.epoch(step + 1, (step + 1) // self.per_epoch, self)
                self.model.train()
                watcher.save(step + 1, self)
            elif (step + 1) % SAVE_EVERY == 0:
                watcher.save(step + 1, self)
        return True

    def _update(self, step: int) -> float:
        training = self.training
        chosen = self.ranks.own(torch.from_numpy(self._batch(step))).numpy()
        _seed(training.seed, step, self.ranks.rank)
        pixels, tokens = self._inputs(chosen)
        self.optimizer.zero_grad(set_to_none=True)
        loss = add_gradients(
            self.model,
            pixels,
            tokens,
            partial(_loss, training),
            training.part or len(chosen),
            self.ranks,
            self._autocast,
            self.scaler.get_scale(),
        )
        self.ranks.sum_gradients(self.model.parameters())
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), training.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        if not math.isfinite(loss):
            raise ConfigError(
                f"the loss of step {step} is {loss}: lower --learning-rate, or use --precision fp32"
            )
        return loss

    def _batch(self, step: int) -> np.ndarray:
        """Indices of one step's pairs, of all ranks."""
        epoch, place = divmod(step, self.per_epoch)
        order = np.random.default_rng([self.training.seed, epoch]).permutation(len(self.data))
        return order[place * self.training.batch : (place + 1) * self.training.batch]

    def _inputs(self, chosen: np.ndarray) -> tuple[Tensor, Tensor]:
        images = torch.from_numpy(self.data.images[chosen]).permute(0, 3, 1, 2)
        if bool((images[:, :1] == images).all()):  # grey: one channel is a third of the work
            images = images[:, :1]
        masks = None if self.data.masks is None else torch.from_numpy(self.data.masks[chosen])
        changed = augment(self.training.augmentation, images.float() / 255, masks)
        rgb = changed.expand(-1, 3, -1, -1).to(self.ranks.device)
        tokens = self.tokens[torch.from_numpy(chosen)]
        tokens = tokens[:, : int((tokens != 0).sum(1).max())]
        return normalise_rgb(rgb, self.clip.mean, self.clip.std), tokens.to(self.ranks.device)

    def state(self) -> dict[str, Any]:
        """All that later steps depend on."""
        return {
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what ``state`` gave."""
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])

    @torch.no_grad()
    def embed(self, data: Prepared, rows: int = 64) -> tuple[np.ndarray, np.ndarray]:
        """Unit rows float32 (N, D) of the images and of the captions of ``data``."""
        model: Any = self.validated.eval()
        device = self.ranks.device
        tokens = self.clip.tokenizer(list(data.captions)).to(device)
        found = []
        for start in range(0, len(data), rows):
            images = torch.from_numpy(np.array(data.images[start : start + rows]))
            images = images.permute(0, 3, 1, 2)
            pixels = normalise_rgb(images.to(device).float() / 255, self.clip.mean, self.clip.std)
            with self._autocast():
                made = model.encode_image(pixels), model.encode_text(tokens[start : start + rows])
            found.append([nn.functional.normalize(each.float(), dim=1) for each in made])
        images_, texts = (torch.cat(each).cpu().numpy() for each in zip(*found, strict=True))
        return images_, texts


def _seed(*numbers: int) -> None:
    """torch's random numbers as a function of ``numbers``."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1))


def _loss(training: ClipTraining, images: Tensor, texts: Tensor) -> Tensor:
    return contrast(training.loss, images, texts, training.temperature, training.beta)


def _make_optimizer(model: nn.Module, training: ClipTraining) -> torch.optim.AdamW:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.98))
