"""What every part is told: the device, and how much to do."""

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Setting:
    """A device, and the size of the work.

    Attributes:
        tiny: tiny models and few images, to try it.
        scratch: a folder that is removed afterwards.
    """

    device: torch.device
    tiny: bool
    scratch: Path

    def wait(self) -> None:
        """Until the device has done all that it was asked."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
