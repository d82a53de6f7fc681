"""How a step is taken: its learning rate. Refuses to know what is trained."""

import math


def warmup_cosine(step: int, warmup: int, steps: int) -> float:
    """Factor of the learning rate: linear rise, then a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
