"""Which parts there are, in the order of what they tell."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from medclipsam.benchmarks.gpu.correctness import (
    compare_backends,
    compare_masks,
    compare_runs,
    describe,
)
from medclipsam.benchmarks.gpu.rates import measure_ceiling, measure_rates
from medclipsam.benchmarks.gpu.setting import Setting


@dataclass(frozen=True)
class Part:
    """One thing to ask.

    Attributes:
        seconds: that it may take.
        run: finds plain JSON values.
    """

    name: str
    seconds: float
    run: Callable[[Setting], dict[str, Any]]


RATES = tuple(
    Part(f"rates-{sam}-{precision}", 110, partial(measure_rates, sam, precision))
    for precision in ("bf16", "fp16")
    for sam in ("vit_b", "vit_h")
)
PARTS = (
    Part("machine", 60, describe),
    Part("masks", 120, compare_masks),
    Part("backends", 150, compare_backends),
    Part("runner", 60, compare_runs),
    Part("ceiling", 60, measure_ceiling),
    *RATES,
)
