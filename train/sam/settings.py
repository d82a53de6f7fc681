"""How SAM is trained: every setting that decides the weights. Light to import."""

from typing import Annotated

from pydantic import Field

from medclipsam.engine.config import Precision
from medclipsam.engine.settings import Count, Natural, NotNegative, Positive, settings


@settings
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

    steps: Count = 1000
    batch: Count = 4
    masks_per_image: Count = 8
    accumulate: Count = 1
    learning_rate: Annotated[Positive, Field(lt=1)] = 1e-4
    weight_decay: NotNegative = 0.01
    warmup: Natural = 50
    clip_norm: Positive = 1.0
    shrink: Annotated[NotNegative, Field(lt=0.5)] = 0.15
    grow: NotNegative = 0.5
    encoder: bool = False
    from_scratch: bool = False
    recompute: bool = False
    components: bool = False
    val_share: Annotated[NotNegative, Field(lt=1)] = 0.1
    validate_every: Count = 200
    save_every: Count = 100
    precision: Precision = "fp32"
    seed: Natural = 0

    @property
    def trains_encoder(self) -> bool:
        return self.encoder or self.from_scratch
