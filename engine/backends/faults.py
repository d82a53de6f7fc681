"""What is no fault of an item: a device, a runtime or a machine that broke.

The same image would have been fine a minute earlier, so nothing is quarantined for it: the run
stops and can be resumed.
"""

import errno
import re
from collections.abc import Iterator

import torch

from medclipsam.engine.errors import BackendError, ConfigError, InputError, MedclipsamError

# What torch, ONNX Runtime, OpenCV and the libraries below say where they have no exception of their
# own. torch: c10/cuda/CUDAException.h, aten/src/ATen/cuda/Exceptions.h, c10/core/CPUAllocator;
# ONNX Runtime: core/providers/cuda/cuda_call.cc, core/framework/bfc_arena.cc.
LIBRARIES = "CUDA|HIP|CUDNN|CUDNN_FE|CUBLAS|CUBLASLT|CUSPARSE|CUSOLVER|CUFFT|NCCL|NVRTC|TensorRT"
DEVICE = re.compile(
    rf"\b({LIBRARIES})( driver| runtime| unknown)? (error|failure)\b"
    rf"|\b({LIBRARIES})_(STATUS|ERROR)_\w+|\bcudaError\w+|cudaGetDeviceCount|\bNVML_\w+"
    r"|\bCUDA driver\b|\bCUDA-capable\b|no CUDA GPUs are available|Found no NVIDIA driver"
    r"|\bCuda Runtime \(|device-side assert|unspecified launch failure|uncorrectable ECC"
    r"|GPU is lost|fallen off the bus|\bXid\b|cudnn_frontend"
    # mostly for want of memory, but the text does not say so
    r"|valid cuDNN algorithm|unable to find an engine to execute",
    re.IGNORECASE,
)
DEVICE_MEMORY = re.compile(
    r"\b(CUDA|HIP|GPU)\b.{0,40}\bout of memory|\bCUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation"
    r"|\bCU[A-Z]+_\w*(?<!HOST_)ALLOC(ATION)?_FAILED|\bOutOfMemory\b",
    re.IGNORECASE,
)
MACHINE_MEMORY = re.compile(
    r"out of memory|can.t allocate memory|cannot allocate memory|bad.alloc|Insufficient memory"
    r"|Failed to allocate memory|DefaultCPUAllocator: not enough memory|HOST_ALLOCATION_FAILED",
    re.IGNORECASE,
)
# ONNX Runtime's allocator: the same words for the machine's memory and the device's
ARENA = re.compile(r"BFCArena.*(Failed to allocate memory|smaller than requested)", re.IGNORECASE)
RUNTIME = "onnxruntime"  # its exceptions share this module and no class
THEIR_INPUT = ("InvalidArgument", "NotImplemented")  # of them, what a call of ours may cause
THEIR_DEVICE = ("EPFail", "DeviceReset")  # of them, what a provider's device does

SPARE_MACHINE = "--memory 256M --threads 1"
OTHER_DEVICE = "use a device with more memory, --device cpu, or a smaller model"


def refuse_broken(exc: BaseException, saver: str = "") -> None:
    """Raise what must stop the run; return where an item alone may be to blame.

    Args:
        saver: flags that make the models need less memory; empty where no flag does.

    Raises:
        BackendError: the device, a runtime or the machine's memory broke.
        MedclipsamError: ``exc`` itself, unless it is about an item.
    """
    if isinstance(exc, MedclipsamError):
        if isinstance(exc, (ConfigError, InputError)):
            return
        raise exc
    for cause in _causes(exc):
        kind, text = type(cause).__name__, " ".join(str(cause).split())
        if where := _exhausted(cause, text):
            raise BackendError(
                f"{where} ran out of memory ({_shorten(text) or kind}){_remedy(where, saver)}"
            ) from exc
        if _is_device(cause, text):
            raise BackendError(
                f"the device broke ({kind}: {_shorten(text)}); see what 'medclipsam doctor' "
                "says and run the same command again, or use --device cpu"
            ) from exc
        if _of_runtime(cause) and kind not in THEIR_INPUT:
            raise BackendError(
                f"ONNX Runtime fails in its graph ({kind}: {_shorten(text)}); export the bundle "
                "again, or use --backend torch"
            ) from exc


def _causes(exc: BaseException) -> Iterator[BaseException]:
    """``exc`` and what it was raised from."""
    seen: set[int] = set()
    cause: BaseException | None = exc
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _exhausted(exc: BaseException, text: str) -> str:
    """Whose memory is used up; empty if none is."""
    if isinstance(exc, torch.OutOfMemoryError):
        return "the device"
    if isinstance(exc, MemoryError) or (isinstance(exc, OSError) and exc.errno == errno.ENOMEM):
        return "the machine"
    if not _foreign(exc):
        return ""
    if DEVICE_MEMORY.search(text):
        return "the device"
    if ARENA.search(text) and torch.cuda.is_initialized():  # else there is no device
        return "the device or the machine"
    return "the machine" if ARENA.search(text) or MACHINE_MEMORY.search(text) else ""


def _remedy(where: str, saver: str) -> str:
    if where == "the machine":
        return f"; lower it with {' '.join(filter(None, (SPARE_MACHINE, saver)))}"
    if where == "the device":
        if saver:
            return f"; lower it with {saver}"
        return f" with one image at a time: no smaller batch cures it; {OTHER_DEVICE}"
    if saver:
        return f"; lower it with {saver}, and the machine's part with {SPARE_MACHINE}"
    return f"; lower the machine's part with {SPARE_MACHINE}, or {OTHER_DEVICE}"


def _is_device(exc: BaseException, text: str) -> bool:
    if isinstance(exc, torch.AcceleratorError):
        return True
    if _of_runtime(exc) and type(exc).__name__ in THEIR_DEVICE:
        return True
    return (_of_runtime(exc) or isinstance(exc, RuntimeError)) and bool(DEVICE.search(text))


def _of_runtime(exc: BaseException) -> bool:
    return type(exc).__module__.startswith(RUNTIME)


def _foreign(exc: BaseException) -> bool:
    """Whether the exception comes from a library's C++: RuntimeError, or a class of its own."""
    if type(exc) is RuntimeError or isinstance(exc, torch.AcceleratorError):
        return True
    return type(exc).__module__.startswith((RUNTIME, "cv2"))


def _shorten(text: str) -> str:
    """Both ends of a long text: ONNX Runtime says where first, what last."""
    return text if len(text) <= 400 else f"{text[:150]} … {text[-250:]}"
