"""How CLIP is fine-tuned: every setting that decides the weights. Light to import."""

from typing import Annotated, Literal

from pydantic import Field

from medclipsam.engine.config import Precision
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.settings import Count, Natural, NotNegative, Positive, settings


@settings
class ClipTraining:
    """How to train; batch, weight decay, temperature and β are those of the authors' script.

    Attributes:
        loss: see ``medclipsam.train.losses``.
        epochs: passes over the pairs; what is left of a batch at the end of one is dropped.
        batch: pairs that see each other, over all ranks.
        part: pairs that are embedded at once on one rank, 0 for all.
        warmup: steps of linear rise before the cosine.
        temperature, beta: of the loss.
        clip_norm: largest norm of the gradient.
        ema: decay of the averaged weights that are validated and kept; 0 for none.
        lora: rank of low-rank additions to frozen weights; 0 trains all weights.
        augmentation: see ``medclipsam.train.clip.augmentation``.
        precision: arithmetic of the towers.
        from_scratch: random weights of the bundle's architecture instead of its own.
    """

    loss: Literal["dhn-nce", "hn-nce", "dcl", "info-nce"] = "dhn-nce"
    epochs: Count = 10
    batch: Annotated[Count, Field(ge=2)] = 64
    part: Natural = 0
    learning_rate: Positive = 1e-5
    weight_decay: NotNegative = 0.1
    warmup: Natural = 100
    temperature: Positive = 0.6
    beta: NotNegative = 0.15
    clip_norm: Positive = 1.0
    ema: Annotated[NotNegative, Field(lt=1)] = 0.0
    lora: Natural = 0
    augmentation: Literal["none", "light", "patches"] = "none"
    precision: Precision = "fp32"
    from_scratch: bool = False
    seed: Natural = 0

    def __post_init__(self) -> None:
        if self.lora and self.from_scratch:
            raise ConfigError("low-rank additions to random weights teach nothing: leave out one")
