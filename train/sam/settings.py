"""How SAM is trained: every setting that decides the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medclipsam.engine.errors import ConfigError

PRECISIONS = ("fp32", "bf16", "fp16")  # those of ``engine.backends``, which imports torch


@dataclass(frozen=True)
class SamTraining:
    """How to train; boxes come from a detector that is often loose, so theirs do too.

    Attributes:
        steps: of the optimiser.
        batch: images that are encoded together.
        masks_per_image: of one image in one step, at most; drawn anew each time.
        accumulate: batches whose gradients are summed up for one step.
        learning_rate: highest, after ``warmup`` steps and before a cosine to zero.
        weight_decay: of AdamW.
        clip_norm: largest norm of a step's gradient.
        shrink, grow: bounds of the random shift of each side of a box inwards and outwards, as
            a share of the box's side.
        encoder: train the image encoder, too; its images vary in brightness.
        from_scratch: begin with random weights, those of the encoder among them.
        recompute: run the encoder's blocks again in the backward pass instead of keeping what they
            gave: half the memory (ViT-B, batch 1: 4.7 instead of 10.0 GB) for somewhat more time.
        components: each component of a mask has a box of its own.
        val_share: of the images, to judge on; with 0 the last weights are kept.
        validate_every: steps.
        save_every: steps between two checkpoints.
        precision: of the encoder; the decoder computes in fp32, as it does in the engine.
        seed: of weights, split, order, boxes and brightness.
    """

    steps: int = 1000
    batch: int = 4
    masks_per_image: int = 8
    accumulate: int = 1
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    warmup: int = 50
    clip_norm: float = 1.0
    shrink: float = 0.15
    grow: float = 0.5
    encoder: bool = False
    from_scratch: bool = False
    recompute: bool = False
    components: bool = False
    val_share: float = 0.1
    validate_every: int = 200
    save_every: int = 100
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        counts = ("steps", "batch", "masks_per_image", "accumulate", "validate_every", "save_every")
        for name in counts:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if min(self.seed, self.warmup, self.weight_decay) < 0 or not self.clip_norm > 0:
            raise ConfigError("seed, warmup and weight_decay must be at least 0, clip_norm above 0")
        if not 0 < self.learning_rate < 1:
            raise ConfigError(f"expected a learning rate in (0, 1), got {self.learning_rate}")
        if not (0 <= self.shrink < 0.5 and self.grow >= 0):
            raise ConfigError(
                f"expected shrink in [0, 0.5) and grow of at least 0, got {self.shrink} and "
                f"{self.grow}"
            )
        if self.precision not in PRECISIONS:
            raise ConfigError(
                f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}"
            )
        if not 0 <= self.val_share < 1:
            raise ConfigError(f"val_share is a share in [0, 1), got {self.val_share}")

    @property
    def trains_encoder(self) -> bool:
        return self.encoder or self.from_scratch
