"""Low-rank adaptation (Hu 2021): W + (α / r) B A, of which only A and B are trained."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

ALPHA = 2.0  # α / r


class LowRank(nn.Module):
    """Adds a product of rank r to a weight (out, in); zero at first."""

    def __init__(self, weight: Tensor, rank: int):
        super().__init__()
        outputs, inputs = weight.shape
        self.down = nn.Parameter(torch.empty(rank, inputs, device=weight.device))
        self.up = nn.Parameter(torch.zeros(outputs, rank, device=weight.device))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + ALPHA * self.up @ self.down


def add_low_rank(model: nn.Module, rank: int) -> None:
    """Freeze ``model`` and give each of its linear layers a trainable low-rank addition."""
    model.requires_grad_(False)
    for module in list(model.modules()):
        if isinstance(module, nn.Linear):
            addition = LowRank(module.weight, min(rank, *module.weight.shape))
            parametrize.register_parametrization(module, "weight", addition)


def merge_low_rank(model: nn.Module) -> None:
    """Put the additions into the weights, so that names are those of the plain model."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
