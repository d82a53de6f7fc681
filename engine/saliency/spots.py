"""The masks that contrastcam shows an image through, and what each says of a map."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from medclipsam.engine.saliency.masks import spot_profiles

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
        return self.draw(torch.arange(count), self.side).flatten(1).double()

    @cached_property
    def gram(self) -> Tensor:
        """float64 (N, N), the products of every two masks, to the bit whatever the threads."""
        design = self.design.numpy()
        return torch.from_numpy(np.einsum("rx,sx->rs", design, design))

    def draw(self, index: Tensor, side: int) -> Tensor:
        """float32 (R, side, side) in [0, 1], where ``index`` lies: how much of the image masks
        ``index`` show."""
        parts = _make_parts(self, side, index.device)
        shift, rows, columns = (part.index_select(0, index) for part in parts)
        return (rows[:, :, None] * columns[:, None, :]).add_(shift[:, None, None])

    def most_telling(self, maps: Tensor) -> Tensor:
        """int64 (T,), narrow spots that the first round did not show: those with the highest
        mean of a map float32 (P, side, side) under them, whichever map."""
        spots = self.design[: self.places**2]
        means = maps.flatten(1).double() @ (spots / spots.sum(1, keepdim=True)).T
        highest = means.amax(0)
        seen = self.first[self.first < self.places**2]
        highest[seen] = -1
        return highest.topk(min(TELLING * self.cells, self.places**2 - len(seen))).indices


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # of use in any mode
def _make_parts(masks: SpotMasks, side: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Every mask as a number (N,) plus the product of a profile of its rows (N, side) and one of
    its columns (N, side): 0 + spot where it is shown, 1 − spot where it is deleted."""
    shift, rows, columns = [], [], []
    for places, width, sign in (
        (masks.places, masks.spot / masks.cells, 1.0),
        (masks.wide, WIDE / masks.wide, -1.0),
    ):
        profiles = spot_profiles(places, width, side, device)
        shift.append(torch.full((places**2,), (1 - sign) / 2, device=device))
        rows.append(sign * profiles.repeat_interleave(places, 0))
        columns.append(profiles.repeat(places, 1))
    return torch.cat(shift), torch.cat(rows), torch.cat(columns)


@lru_cache(maxsize=8)
def open_masks(cells: int, spot: float) -> SpotMasks:
    """One set a grid: its products are computed once."""
    return SpotMasks(cells, spot)
