"""A mean with its 95 % bootstrap interval, and the cases for which there is no figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medclipsam.engine.evaluation.metrics import mean_interval


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % bootstrap interval; NaN bounds where there is one case.

    Attributes:
        mean, low, high: over the cases that have the figure; NaN where none has.
        undefined: how many cases have none, such as an infinite distance.
    """

    mean: float
    low: float
    high: float
    undefined: int = 0

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Interval:
        """Over the finite values; the others are counted."""
        array = np.asarray(values, np.float64)
        finite = array[np.isfinite(array)]
        if not finite.size:
            nothing = float("nan")
            return cls(nothing, nothing, nothing, array.size)
        return cls(*mean_interval(finite), undefined=array.size - finite.size)

    def __str__(self) -> str:
        return self.show(3)

    def show(self, digits: int, signed: bool = False) -> str:
        """``0.81 [0.78, 0.84] (2 undefined)``, so many decimals; ``–`` where none has it."""
        sign = "+" if signed else ""

        def text(value: float) -> str:
            return f"{value:{sign}.{digits}f}"

        undefined = f" ({self.undefined} undefined)" if self.undefined else ""
        if self.mean != self.mean:
            return f"–{undefined}"
        if self.low != self.low:
            return text(self.mean) + undefined
        return f"{text(self.mean)} [{text(self.low)}, {text(self.high)}]{undefined}"
