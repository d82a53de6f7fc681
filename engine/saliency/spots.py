"""The masks that contrastcam shows an image through, and what each says of a map."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from medclipsam.engine.saliency.masks import spot_masks

FINE = 4  # points per cell of a side at which a map is read
TELLING = 2  # spots that the second round shows, per cell of a side
WIDE = 0.78  # deviation of a wide spot, as a share of the distance between two


@dataclass(frozen=True)
class SpotMasks:
    """The masks that an image may be shown through: the grid's narrow spots, row by row, then
    what is left of it without each wide spot.

    Attributes:
        cells: side g of the model's grid.
        spot: deviation of a narrow spot in cells.
    """

    cells: int
    spot: float

    @property
    def side(self) -> int:
        """Points per side at which a map is read."""
        return FINE * self.cells

    @property
    def places(self) -> int:
        """Narrow spots per side."""
        return max(1, self.cells - 1)

    @property
    def wide(self) -> int:
        """Wide spots per side."""
        return (self.places + 1) // 2

    @cached_property
    def first(self) -> Tensor:
        """int64, the masks of the first round."""
        narrow = torch.arange(self.places**2)
        even = (narrow // self.places % 2 == 0) & (narrow % self.places % 2 == 0)
        return torch.cat([narrow[even], self.places**2 + torch.arange(self.wide**2)])

    @cached_property
    def design(self) -> Tensor:
        """float64 (N, side²), every mask at the points of the map."""
        count = self.places**2 + self.wide**2
        cpu = torch.device("cpu")
        return self.draw(torch.arange(count), self.side, cpu).flatten(1).double()

    @cached_property
    def gram(self) -> Tensor:
        """float64 (N, N), the products of every two masks, to the bit whatever the threads."""
        design = self.design.numpy()
        return torch.from_numpy(np.einsum("rx,sx->rs", design, design))

    def draw(self, index: Tensor, side: int, device: torch.device) -> Tensor:
        """float32 (R, side, side) in [0, 1]: how much of the image masks ``index`` show."""
        narrow = index[index < self.places**2].to(device)
        wide = index[index >= self.places**2].to(device) - self.places**2
        shown = spot_masks(self.places, self.spot / self.cells, side, narrow)
        deleted = 1 - spot_masks(self.wide, WIDE / self.wide, side, wide)
        masks = shown.new_empty(len(index), side, side)
        masks[index < self.places**2] = shown
        masks[index >= self.places**2] = deleted
        return masks

    def most_telling(self, maps: Tensor) -> Tensor:
        """int64 (T,), narrow spots that the first round did not show: those with the highest
        mean of a map float32 (P, side, side) under them, whichever map."""
        spots = self.design[: self.places**2]
        means = maps.flatten(1).double() @ (spots / spots.sum(1, keepdim=True)).T
        highest = means.amax(0)
        seen = self.first[self.first < self.places**2]
        highest[seen] = -1
        return highest.topk(min(TELLING * self.cells, self.places**2 - len(seen))).indices


@lru_cache(maxsize=8)
def open_masks(cells: int, spot: float) -> SpotMasks:
    """One set a grid: its products are computed once."""
    return SpotMasks(cells, spot)
