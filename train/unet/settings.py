"""How a U-Net is trained: every setting that decides the weights. Light to import."""

from dataclasses import field
from typing import Annotated

from pydantic import Field

from medclipsam.engine.settings import Count, Natural, NotNegative, Positive, settings


@settings
class Augmentation:
    """How far pictures are changed; 0 turns each change off.

    Attributes:
        rotate: degrees, either way.
        scale: share, up or down.
        shift: share of the side.
        gain, gamma: factors up to 1 + this and down to its inverse.
        noise: largest standard deviation, of values in [0, 1].
        elastic: largest shift of a cell's corner, as a share of the side.
        flip: mirror left and right, each picture with probability ½.
    """

    rotate: NotNegative = 15.0
    scale: Annotated[NotNegative, Field(lt=1)] = 0.15
    shift: NotNegative = 0.08
    gain: NotNegative = 0.2
    gamma: NotNegative = 0.25
    noise: NotNegative = 0.04
    elastic: NotNegative = 0.0
    flip: bool = False


@settings
class UnetTraining:
    """How to train.

    Attributes:
        epochs: passes over the samples to learn from.
        batch: samples per step.
        learning_rate: highest, after a linear rise and before a cosine to zero.
        weight_decay: of AdamW.
        warmup: share of all steps in which the rate rises.
        clip_norm: largest norm of a gradient.
        val_share: of the patients, to judge epochs on.
        by_confidence: weigh each mask by its confidence.
        augmentation: see ``Augmentation``.
        seed: of weights, split, order and augmentation.
    """

    epochs: Count = 60
    batch: Count = 8
    learning_rate: Annotated[Positive, Field(lt=1)] = 1e-3
    weight_decay: NotNegative = 1e-4
    warmup: Annotated[NotNegative, Field(lt=1)] = 0.05
    clip_norm: Positive = 1.0
    val_share: Annotated[Positive, Field(lt=1)] = 0.2
    by_confidence: bool = False
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: Natural = 0
