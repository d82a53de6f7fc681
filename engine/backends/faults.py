"""What is no fault of an item: a device, a runtime or a machine that broke.

The same image would have been fine a minute earlier, so nothing is quarantined for it: the run
stops and can be resumed.
"""

import re
from collections.abc import Iterator

import torch

from medclipsam.engine.errors import BackendError, ConfigError, InputError, MedclipsamError

# What torch, OpenCV and the libraries below them say where they have no exception of their own.
# torch/c10: c10/cuda/CUDAException.h, aten/src/ATen/cuda/Exceptions.h, c10/core/CPUAllocator.
DEVICE = re.compile(
    r"\b(CUDA|HIP|CUDNN|CUBLAS|CUSPARSE|CUSOLVER|CUFFT|NCCL|NVRTC|TensorRT)( driver)? error\b"
    r"|\b(CUDA|CUDNN|CUBLAS|CUSPARSE|CUSOLVER|CUFFT|NVRTC)_(STATUS|ERROR)_\w+"
    r"|device-side assert|no CUDA GPUs are available|cudnn_frontend|cuDNN error",
    re.IGNORECASE,
)
MEMORY = re.compile(
    r"out of memory|can.t allocate memory|cannot allocate memory|bad_alloc|Insufficient memory"
    r"|Failed to allocate memory|DefaultCPUAllocator: not enough memory",
    re.IGNORECASE,
)
RUNTIME = "onnxruntime"  # its exceptions share this module and no class
THEIR_INPUT = ("InvalidArgument", "NotImplemented")  # of them, what a call of ours may cause


def refuse_broken(exc: BaseException, saver: str = "") -> None:
    """Raise what must stop the run; return where an item alone may be to blame.

    Args:
        saver: flags that make the models need less memory, where models are at work.

    Raises:
        BackendError: the device, a runtime or the machine's memory broke.
        MedclipsamError: ``exc`` itself, unless it is about an item.
    """
    if isinstance(exc, MedclipsamError):
        if isinstance(exc, (ConfigError, InputError)):
            return
        raise exc
    for cause in _causes(exc):
        text = " ".join(str(cause).split())[:400]
        if isinstance(cause, torch.OutOfMemoryError):
            raise BackendError(
                f"the device ran out of memory ({text}); lower it with {saver}"
            ) from exc
        if isinstance(cause, MemoryError) or (_foreign(cause) and MEMORY.search(text)):
            raise BackendError(
                f"the machine ran out of memory ({text or type(cause).__name__}); lower it with "
                f"{' '.join(filter(None, ('--memory 256M --threads 1', saver)))}"
            ) from exc
        if _is_device(cause, text):
            raise BackendError(
                f"the device broke ({type(cause).__name__}: {text}); see what 'medclipsam doctor' "
                "says and run the same command again, or use --device cpu"
            ) from exc


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """``exc`` and what it was raised from."""
    seen: set[int] = set()
    cause: BaseException | None = exc
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _is_device(exc: BaseException, text: str) -> bool:
    if isinstance(exc, torch.AcceleratorError):
        return True
    if type(exc).__module__.startswith(RUNTIME):
        return type(exc).__name__ not in THEIR_INPUT
    return isinstance(exc, RuntimeError) and bool(DEVICE.search(text))


def _foreign(exc: BaseException) -> bool:
    """Whether the exception comes from a library's C++: RuntimeError, or a class of its own."""
    module = type(exc).__module__
    return type(exc) is RuntimeError or module.startswith((RUNTIME, "cv2"))
