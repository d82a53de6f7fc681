"""SAM, its optimiser and its judgements: one step, one validation, and the state between them.

Refuses to know when steps are taken and where states are kept. What a step does depends on
the seed and its own number alone, so that a resumed training ends in the same bits.
"""

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medclipsam.engine.backends.arithmetic import make_autocast
from medclipsam.engine.backends.pytorch import decode_boxes
from medclipsam.engine.backends.samencoder import encode_block, encode_image
from medclipsam.engine.errors import ConfigError
from medclipsam.train.sam.boxes import jitter_boxes, tight_boxes
from medclipsam.train.sam.data import SamSamples
from medclipsam.train.sam.encoder import inside_image, recompute_block, to_input
from medclipsam.train.sam.loss import hard_dice, mask_loss
from medclipsam.train.sam.settings import SamTraining
from medclipsam.train.schedule import warmup_cosine

ORDER, DRAWS, JUDGING = 1, 2, 3  # streams of random numbers


@dataclass(frozen=True)
class Judged:
    """Mean DSC over the masks to judge on, with their exact boxes and with jittered ones."""

    step: int
    exact: float
    jittered: float

    @property
    def score(self) -> float:
        return (self.exact + self.jittered) / 2


@dataclass(frozen=True)
class _Part:
    """One batch of a step: ``owner`` (K,) is the place among ``images`` (B,) of each mask."""

    images: np.ndarray
    masks: np.ndarray
    owner: np.ndarray


class Fitting:
    """Model, optimiser and the judgements so far."""

    def __init__(
        self,
        sam: nn.Module,
        samples: SamSamples,
        learn: np.ndarray,
        judge: np.ndarray,
        training: SamTraining,
        device: torch.device,
        cache: np.ndarray | None,
    ):
        self.sam, self.samples, self.training, self.judge = sam, samples, training, judge
        self.history: list[Judged] = []
        self._learn, self._device, self._cache = learn, device, cache
        self._autocast = make_autocast(device, training.precision)
        self._best: dict[str, Tensor] = {}
        order = np.argsort(samples.source, kind="stable")
        edges = np.searchsorted(samples.source[order], np.arange(1, len(samples.images)))
        self._masks_of = np.split(order, edges)
        for name, parameter in sam.named_parameters():
            parameter.requires_grad_(training.trains_encoder or "image_encoder" not in name)
        self._trained = {n: p for n, p in sam.named_parameters() if p.requires_grad}
        self._optimizer = torch.optim.AdamW(
            self._trained.values(), lr=training.learning_rate, weight_decay=training.weight_decay
        )
        scaled = training.precision == "fp16" and training.trains_encoder
        self._scaler = torch.amp.GradScaler(device.type, enabled=scaled)

    def step(self, step: int) -> tuple[float, float]:
        """Step ``step``, from 0; returns the mean loss and soft Dice over its boxes."""
        training = self.training
        rng = np.random.default_rng([training.seed, DRAWS, step])
        torch.manual_seed(int(rng.integers(1 << 62)))
        factor = warmup_cosine(step, training.warmup, training.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = training.learning_rate * factor
        parts = self._draw(step, rng)
        boxes = sum(len(part.masks) for part in parts)
        self._optimizer.zero_grad(set_to_none=True)
        sums = np.zeros(2)
        for part in parts:
            loss, dice = self._forward(part, rng)
            self._scaler.scale(loss.sum() / boxes).backward()
            sums += loss.sum().item(), dice.sum().item()
        if not np.isfinite(sums).all():
            raise ConfigError(
                f"the loss became {sums[0]} in step {step + 1}; lower --learning-rate (now "
                f"{training.learning_rate:g})"
            )
        self._scaler.unscale_(self._optimizer)
        nn.utils.clip_grad_norm_(self._trained.values(), training.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return float(sums[0] / boxes), float(sums[1] / boxes)

    def _draw(self, step: int, rng: np.random.Generator) -> list[_Part]:
        """The images and masks of a step; every image once before any again."""
        training, count = self.training, len(self._learn)
        wanted = training.batch * training.accumulate
        turns = [divmod(n, count) for n in range(step * wanted, (step + 1) * wanted)]
        chosen = [self._learn[_order(training.seed, turn, count)[n]] for turn, n in turns]
        parts = []
        for start in range(0, wanted, training.batch):
            images = np.array(chosen[start : start + training.batch])
            masks = [self._pick(rng, self._masks_of[n]) for n in images]
            owner = np.repeat(np.arange(len(images)), [len(group) for group in masks])
            parts.append(_Part(images, np.concatenate(masks), owner))
        return parts

    def _pick(self, rng: np.random.Generator, masks: np.ndarray) -> np.ndarray:
        most = self.training.masks_per_image
        return masks if len(masks) <= most else rng.choice(masks, most, replace=False)

    def _forward(self, part: _Part, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        training, inner = self.training, self.samples.inner[part.images][part.owner]
        masks = self.samples.masks[part.masks]
        gain = rng.uniform(0.8, 1.2, len(part.images))
        boxes = jitter_boxes(rng, masks, training.shrink, training.grow, inner)
        embeddings = self._embed(part.images, gain)
        logits, predicted_iou = self._decode(embeddings[torch.from_numpy(part.owner)], boxes)
        truth, inside = self._truth(masks, inner)
        return mask_loss(logits, predicted_iou, truth, inside)

    def _embed(self, images: np.ndarray, gain: np.ndarray | None = None) -> Tensor:
        """(B, C, g, g); ``gain`` has no say where the encoder is frozen."""
        if self._cache is not None:
            return torch.from_numpy(self._cache[images]).to(self._device)
        pixels = to_input(self.sam, self.samples, images, gain)
        run_block = recompute_block if self.training.recompute else encode_block
        return encode_image(self.sam, pixels, self._autocast, run_block)

    def _decode(self, embeddings: Tensor, boxes: np.ndarray) -> tuple[Tensor, Tensor]:
        """(K, C, g, g) and (K, 4) → logits (K, S, S) and predicted IoU (K,)."""
        low, iou = decode_boxes(self.sam, embeddings, torch.from_numpy(boxes).to(self._device))
        side = self.samples.masks.shape[-1]
        logits = F.interpolate(low[:, None], (side, side), mode="bilinear", align_corners=False)
        return logits[:, 0], iou

    def _truth(self, masks: np.ndarray, inner: np.ndarray) -> tuple[Tensor, Tensor]:
        inside = inside_image(inner, masks.shape[-1]).to(self._device)
        return torch.from_numpy(masks).to(self._device), inside

    @torch.no_grad()
    def validate(self, step: int) -> Judged:
        """Judge the weights after ``step`` steps and keep them if they are the best so far."""
        rng = np.random.default_rng([self.training.seed, JUDGING])
        scores: list[Tensor] = []
        for image in self.judge:
            embedding = self._embed(np.array([image]))
            of = self._masks_of[image]
            for start in range(0, len(of), self.training.masks_per_image):
                chosen = of[start : start + self.training.masks_per_image]
                scores.append(self._judge(embedding, chosen, rng))
        exact, jittered = torch.cat(scores, 1).double().mean(1).tolist()
        judged = Judged(step, exact, jittered)
        if not self.history or judged.score > max(past.score for past in self.history):
            self._best = self._weights()
        self.history.append(judged)
        return judged

    def _judge(self, embedding: Tensor, chosen: np.ndarray, rng: np.random.Generator) -> Tensor:
        """DSC (2, K) with exact and with jittered boxes."""
        masks = self.samples.masks[chosen]
        inner = self.samples.inner[self.samples.source[chosen]]
        truth, inside = self._truth(masks, inner)
        loose = jitter_boxes(rng, masks, self.training.shrink, self.training.grow, inner)
        embeddings = embedding.expand(len(chosen), -1, -1, -1)
        both = [self._decode(embeddings, boxes)[0] for boxes in (tight_boxes(masks), loose)]
        return torch.stack([hard_dice(logits, truth, inside) for logits in both]).cpu()

    def _weights(self) -> dict[str, Tensor]:
        return {name: p.detach().cpu().clone() for name, p in self._trained.items()}

    def take_best(self) -> None:
        """Give the model the weights judged best; the last ones where none were judged."""
        self._fill(self._best)

    @torch.no_grad()
    def _fill(self, weights: dict[str, Tensor]) -> None:
        for name, tensor in weights.items():
            self._trained[name].copy_(tensor)

    def state(self) -> dict[str, Any]:
        """All that a resumed training needs, as ``Checkpoints`` takes it."""
        return {
            "weights": self._weights(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "best": self._best,
            "history": [asdict(judged) for judged in self.history],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what ``state`` gave."""
        self._fill(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self._best = state["best"]
        self.history = [Judged(**judged) for judged in state["history"]]


@lru_cache(maxsize=4)
def _order(seed: int, turn: int, count: int) -> np.ndarray:
    """The random order of ``count`` images in their pass ``turn``."""
    return np.random.default_rng([seed, ORDER, turn]).permutation(count)
