"""How exactly a device computes: what float32 means there, and what stands in for it if asked.

float32 is IEEE float32 on every device: TF32, which cuDNN uses unasked, keeps 10 of 23 bits of a
factor, and is a precision of its own, ``tf32``. Kernels are deterministic, so that a run on one
device gives the same bytes again. One exception: what ``m2ib`` differentiates through on CUDA, the
backward of a fused attention, may add in any order.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch

from medclipsam.engine.backends.plans import find_driver
from medclipsam.engine.errors import BackendError

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

Autocast = Callable[[], AbstractContextManager[Any]]


def compute_exactly() -> None:
    """Set CUDA's arithmetic for this process: float32 as IEEE has it, sums in float32, the same
    kernels every time. (cuBLAS sums in one order since torch gives each stream a workspace.)"""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    matmul.allow_fp16_reduced_precision_reduction = False
    matmul.allow_bf16_reduced_precision_reduction = False
    cudnn.benchmark, cudnn.deterministic = False, True  # no choice of kernels by the clock


@contextmanager
def _tf32() -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def make_autocast(device: torch.device, precision: str) -> Autocast:
    """Makes a context in which torch computes in ``precision`` on ``device``."""
    if precision == "fp32":
        return nullcontext
    if precision == "tf32":
        return _tf32
    return partial(torch.autocast, device.type, DTYPES[precision])


def identify_device(device: torch.device) -> dict[str, str]:
    """What of a device decides bytes, for the record of a run; nothing of a CPU, which gives the
    same everywhere."""
    if device.type != "cuda":
        return {}
    facts = torch.cuda.get_device_properties(device)
    try:
        driver = find_driver()
    except BackendError:  # it runs all the same
        driver = "unknown"
    return {
        "gpu": facts.name,
        "capability": f"{facts.major}.{facts.minor}",
        "driver": driver,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
    }


def require_precision(device: torch.device, precision: str) -> None:
    """Refuse a precision for which the device has no arithmetic.

    Raises:
        BackendError: says which precisions it has.
    """
    has = {"fp32": True}
    if device.type == "cuda":
        ampere = torch.cuda.get_device_capability(device) >= (8, 0)
        has |= {"tf32": ampere, "bf16": ampere, "fp16": True}
    else:
        has |= {
            "bf16": torch.ops.mkldnn._is_mkldnn_bf16_supported(),
            "fp16": torch.ops.mkldnn._is_mkldnn_fp16_supported(),
        }
    if not has.get(precision):
        known = ", ".join(name for name in PRECISIONS if has.get(name))
        raise BackendError(
            f"precision {precision!r} was asked for, but device '{device}' computes in {known}; "
            "use one of these"
        )
