"""The run-time: image in → mask out, archive in → run folder out."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medclipsam.engine.engine import Engine

__all__ = ["Engine"]


def __getattr__(name: str) -> Any:
    """Import ``Engine`` when it is first asked for: the CLI's ``--help`` needs no torch."""
    if name == "Engine":
        from medclipsam.engine.engine import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
