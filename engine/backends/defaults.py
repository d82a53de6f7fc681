"""What ``auto`` means: settings that a device and a bundle decide together."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from medclipsam.engine.backends.arithmetic import PRECISIONS
from medclipsam.engine.config import EngineConfig
from medclipsam.engine.weights.bundle import Bundle

ROWS = 64  # of a batch, where memory is small
LARGE, LARGE_ROWS = 24 << 30, 256  # a CUDA device of so many bytes takes batches of so many rows
MEAN_IOU, WORST_IOU = 0.97, 0.8  # least, of masks in bf16 with those in fp32


def settle(
    config: EngineConfig, bundle: Bundle, device: torch.device, backend: str = "torch"
) -> EngineConfig:
    """``config`` with a number and a precision in the place of 0 and ``auto``."""
    saliency = config.saliency
    if not saliency.rows:
        saliency = replace(saliency, rows=choose_rows(device))
    precision = config.precision
    if precision == "auto":
        precision = choose_precision(bundle, device, backend)
    return replace(config, saliency=saliency, precision=precision)


def choose_rows(device: torch.device) -> int:
    """Rows of a batch that keep the device busy and leave it memory."""
    if device.type != "cuda":
        return ROWS
    return LARGE_ROWS if torch.cuda.get_device_properties(device).total_memory >= LARGE else ROWS


def choose_precision(bundle: Bundle, device: torch.device, backend: str) -> Any:
    """``bf16`` where the device has it and it is on record that masks stay the same, else
    ``fp32``, always on a CPU."""
    fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bf16" if fast and any(map(is_close, find_parity(bundle, backend))) else PRECISIONS[0]


def find_parity(bundle: Bundle, backend: str) -> list[Mapping[str, Any]]:
    """Figures of bf16 against fp32 in ``bundle.json``: for an exported graph its own, for torch
    those of any export."""
    entries = bundle.exports
    kinds = {"torch": ("onnx", "tensorrt"), "onnx-tensorrt": ("onnx",)}.get(backend, (backend,))
    found = []
    for kind in kinds:
        entry = entries.get(kind, {}).get("bf16", {})
        machines = entry.get("machines", {}).values()
        found += [each.get("parity", {}) for each in (entry, *machines)]
    return found


def is_close(figures: Mapping[str, Any]) -> bool:
    """Whether masks of a comparison are as close as bf16 must be."""
    return (
        figures.get("masks", 0) > 0
        and figures.get("mean_iou", 0) >= MEAN_IOU
        and figures.get("worst_iou", 0) >= WORST_IOU
    )
