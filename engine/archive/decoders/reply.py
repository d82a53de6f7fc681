"""What a decode process answers: a decoded item or an error, taken apart and put together.

Grey frames travel as one channel. Nothing but JSON and bytes is sent, so that a decoder
that has been led astray cannot hand code to the process that asked.
"""

from dataclasses import asdict
from typing import Any

import numpy as np

from medclipsam.engine.archive.readers.reader import Decoded
from medclipsam.engine.archive.readers.window import as_frames
from medclipsam.engine.errors import BackendError, InputError
from medclipsam.engine.types import Grid


def pack(decoded: Decoded) -> tuple[dict[str, Any], list[bytes | memoryview]]:
    """A head of plain values and the messages that follow it: pixels, then sources."""
    frames = decoded.frames
    pixels = np.ascontiguousarray(frames if frames.strides[-1] else frames[..., 0])
    grid = asdict(decoded.grid)
    if decoded.grid.affine is not None:
        grid["affine"] = decoded.grid.affine.tolist()
    head = {
        "shape": pixels.shape,
        "grid": grid,
        "digest": decoded.digest,
        "sources": len(decoded.sources),
    }
    return head, [pixels.data.cast("B"), *decoded.sources]


def unpack(head: dict[str, Any], pixels: bytearray, sources: tuple[bytes, ...]) -> Decoded:
    """The inverse of ``pack``."""
    stored = np.frombuffer(pixels, np.uint8).reshape(head["shape"])
    grid = head["grid"]
    grid["shape"] = tuple(grid["shape"])
    if grid["spacing"] is not None:
        grid["spacing"] = tuple(grid["spacing"])
    if grid["affine"] is not None:
        grid["affine"] = np.array(grid["affine"], np.float64)
    frames = as_frames(stored) if stored.ndim == 3 else stored
    return Decoded(frames, Grid(**grid), head["digest"], sources)


def pack_error(exc: InputError | BackendError) -> dict[str, str]:
    """The head of an answer that nothing follows."""
    if isinstance(exc, InputError):
        return {"stage": exc.stage, "reason": exc.reason, "message": str(exc)}
    return {"message": str(exc)}


def unpack_error(head: dict[str, str]) -> InputError | BackendError:
    """The inverse of ``pack_error``."""
    if "reason" in head:
        return InputError(head["stage"], head["reason"], head["message"])
    return BackendError(head["message"])
