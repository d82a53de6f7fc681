"""What ``auto`` means: settings that a device and a bundle decide together."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from medclipsam.engine.backends.arithmetic import PRECISIONS, identify_device
from medclipsam.engine.config import EngineConfig
from medclipsam.engine.durable import make_folder, write_durable
from medclipsam.engine.home import home
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
    """``bf16`` where it is fast and it is on record that masks stay the same, else ``fp32``."""
    known = is_fast_in_bf16(device) and any(map(is_close, find_parity(bundle, device, backend)))
    return "bf16" if known else PRECISIONS[0]


def is_undecided(config: EngineConfig, bundle: Bundle, device: torch.device, backend: str) -> bool:
    """Whether bf16 might do, and nothing is known of it: it can be tried on images."""
    asked = config.precision == "auto" and backend == "torch" and is_fast_in_bf16(device)
    return asked and not any(
        figures.get("masks") for figures in find_parity(bundle, device, backend)
    )


def is_fast_in_bf16(device: torch.device) -> bool:
    """Whether bf16 is worth its bits there; a CPU runs in float32 unless it is told otherwise."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def find_parity(bundle: Bundle, device: torch.device, backend: str) -> list[Mapping[str, Any]]:
    """Figures of bf16 against fp32: for an exported graph its own in ``bundle.json``, for torch
    those of any export, and what a trial on this device has found."""
    entries = bundle.exports
    kinds = {"torch": ("onnx", "tensorrt"), "onnx-tensorrt": ("onnx",)}.get(backend, (backend,))
    found = [recall_trial(bundle, device)] if backend == "torch" else []
    for kind in kinds:
        entry = entries.get(kind, {}).get("bf16", {})
        machines = entry.get("machines", {}).values()
        found += [each.get("parity", {}) for each in (entry, *machines)]
    return found


def recall_trial(bundle: Bundle, device: torch.device) -> Mapping[str, Any]:
    """What ``remember_trial`` was told; nothing if nothing is readable there."""
    try:
        found = json.loads(_trial_file(bundle, device).read_bytes())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def remember_trial(bundle: Bundle, device: torch.device, figures: Mapping[str, Any]) -> None:
    """Keep figures of these weights on this device for later runs.

    Raises:
        OutputError: they cannot be stored.
    """
    path = _trial_file(bundle, device)
    make_folder(path.parent)
    write_durable(path, json.dumps(figures, indent=2).encode())


def _trial_file(bundle: Bundle, device: torch.device) -> Path:
    machine = json.dumps(identify_device(device), sort_keys=True) + torch.__version__
    name = f"{bundle.digest[:16]}-{hashlib.sha256(machine.encode()).hexdigest()[:12]}.json"
    return home() / "trials" / name


def is_close(figures: Mapping[str, Any]) -> bool:
    """Whether masks of a comparison are as close as bf16 must be."""
    return (
        figures.get("masks", 0) > 0
        and figures.get("mean_iou", 0) >= MEAN_IOU
        and figures.get("worst_iou", 0) >= WORST_IOU
    )
