"""Where the arithmetic runs: one callable per graph, opened by name.

    text          (T, L) int64 token ids → (T, D) float32 unit rows
    features      (B, 3, S, S), (P, D) → embedding (B, D), activation (B, C, g, g),
                  importance (B, P, C)
    score         (R, 3, S, S) → (R, D) float32 unit rows
    sam_encoder   (B, 3, S, S) → (B, C, g, g)
    sam_decoder   (K, C, g, g), (K, 4) XYXY in input pixels → logits (K, 4g, 4g), IoU (K,)

No silent fallback: a device or backend that cannot run as asked says why and stops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from medclipsam.engine.bundle import Bundle
from medclipsam.engine.errors import BackendError

BACKENDS = ("torch",)


def open_device(name: str = "auto") -> torch.device:
    """``auto`` is the first CUDA device if there is one, else the CPU.

    Raises:
        BackendError: the named device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as exc:
        raise BackendError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N") from exc
    if device.type not in ("cpu", "cuda"):
        raise BackendError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BackendError(
            f"device {name!r} was asked for, but torch sees {torch.cuda.device_count()} CUDA "
            "devices; run 'medclipsam doctor' to see why, or use --device cpu"
        )
    return device


def open_graph(
    bundle: Bundle, name: str, device: torch.device, backend: str = "torch", **settings: Any
) -> Callable[..., Any]:
    """The graph ``name`` of ``bundle`` on ``device``.

    Args:
        settings: what the graph depends on besides weights: ``target`` of ``features``.

    Raises:
        BackendError: an unknown backend.
    """
    if backend != "torch":
        raise BackendError(f"unknown backend {backend!r}; choose from {', '.join(BACKENDS)}")
    from medclipsam.engine.backends import pytorch

    return pytorch.open_graph(bundle, name, device, **settings)
