"""How much one item may ask for, checked from its header before anything is decoded."""

from dataclasses import dataclass

from medclipsam.engine.errors import ConfigError, InputError

STAGE = "read_image"


@dataclass(frozen=True)
class Limits:
    """Caps on one item.

    Attributes:
        max_bytes: size of the file, and of what a compressed file may inflate to.
        max_pixels: F·H·W of all its frames together.
        max_seconds: time to decode it in, where a process of its own does that.
        max_memory: address space of that process in bytes.
    """

    max_bytes: int = 2 << 30
    max_pixels: int = 1 << 28
    max_seconds: float = 120.0
    max_memory: int = 16 << 30

    def __post_init__(self) -> None:
        wrong = [f"{name}={value}" for name, value in vars(self).items() if not value > 0]
        if wrong:
            raise ConfigError(f"limits must be positive, got {' and '.join(wrong)}")

    def check_pixels(self, frames: int, height: int, width: int) -> None:
        """Refuse an item by the (F, H, W) of its header."""
        if frames < 1 or height < 1 or width < 1:
            raise refuse("empty", f"expected pixels, got {frames} × {height} × {width}")
        if frames * height * width > self.max_pixels:
            raise refuse(
                "too-large",
                f"{frames} × {height} × {width} pixels are more than the limit of "
                f"{self.max_pixels}; split the item or raise max_pixels",
            )

    def check_bytes(self, count: int) -> None:
        """Refuse an item by the bytes it holds or inflates to."""
        if count > self.max_bytes:
            raise refuse(
                "too-large",
                f"{count} bytes are more than the limit of {self.max_bytes}; "
                "split the item or raise max_bytes",
            )


DEFAULT_LIMITS = Limits()


def refuse(reason: str, message: str) -> InputError:
    """The error of an item that cannot be read; ``message`` names expected and got."""
    return InputError(STAGE, reason, message)
