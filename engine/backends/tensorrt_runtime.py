"""TensorRT's module, its messages and its objects, or one sentence about why there are none.

Refuses to know graphs and plans. TensorRT tells reasons to a logger only, so that one is kept and
asked whenever a call fails.
"""

import logging
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from medclipsam.engine.errors import BackendError

log = logging.getLogger(__name__)

LEAST = (10, 0)  # the first with int64 tensors and opset 20
current = torch.cuda.device  # a block in which TensorRT creates things on this device
LEVELS = {"INTERNAL_ERROR": logging.ERROR, "ERROR": logging.ERROR, "WARNING": logging.WARNING}


def load_runtime() -> Any:
    """The module ``tensorrt``.

    Raises:
        BackendError: it is missing, broken or too old.
    """
    try:
        import tensorrt
    except (ImportError, OSError) as exc:
        raise BackendError(
            f"backend tensorrt needs TensorRT ({exc}); pip install 'medclipsam[tensorrt]' where "
            "there is an NVIDIA GPU, or use --backend torch"
        ) from exc
    if tuple(map(int, tensorrt.__version__.split(".")[:2])) < LEAST:
        raise BackendError(
            f"backend tensorrt needs TensorRT {LEAST[0]}.{LEAST[1]} or newer, here is "
            f"{tensorrt.__version__}; pip install --upgrade 'medclipsam[tensorrt]'"
        )
    return tensorrt


def prove_runtime() -> str:
    """Start TensorRT's runtime; returns its version.

    Raises:
        BackendError: it does not start here; says why.
    """
    runtime = load_runtime()
    start(runtime.Runtime, runtime)
    return runtime.__version__


@lru_cache(maxsize=4)
def open_logger(runtime: Any) -> Any:
    """TensorRT's messages in ``logging``; the last errors are kept, as reasons.

    One for the whole process: TensorRT wants the same in all of its objects.
    """

    class Logger(runtime.ILogger):
        def __init__(self) -> None:
            runtime.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=3)

        def log(self, severity: Any, msg: str) -> None:
            if severity.name in LEVELS:
                log.log(LEVELS[severity.name], "TensorRT: %s", msg)
                if "ERROR" in severity.name:
                    self.errors.append(" ".join(msg.split()))
            elif severity.name == "INFO":
                log.debug("TensorRT: %s", msg)

        def reason(self) -> str:
            return "; ".join(self.errors)[:500] or "it gives no reason"

    return Logger()


def start(kind: Callable[[Any], Any], runtime: Any) -> Any:
    """A ``Builder`` or ``Runtime``.

    Raises:
        BackendError: the driver or the GPU does not answer.
    """
    logger = open_logger(runtime)
    logger.errors.clear()
    try:
        return kind(logger)
    except (TypeError, RuntimeError) as exc:  # pybind's words for a null pointer
        raise BackendError(
            f"TensorRT {runtime.__version__} does not start here ({logger.reason()}); check the "
            "NVIDIA driver with nvidia-smi, or use --backend torch"
        ) from exc


def require_gpu(device: torch.device) -> torch.device:
    """``device`` with its index.

    Raises:
        BackendError: it is no CUDA device, or torch sees none.
    """
    if device.type != "cuda" or not torch.cuda.is_available():
        raise BackendError(
            f"backend tensorrt needs an NVIDIA GPU, but the device is '{device}' and torch sees "
            f"{torch.cuda.device_count()} CUDA devices; use --backend torch or onnx"
        )
    return device if device.index is not None else torch.device("cuda", torch.cuda.current_device())


def load_engine(runtime: Any, plan: bytes, name: str) -> Any:
    """Deserialise a plan that was just built, or that ``read_plan`` gave.

    Raises:
        BackendError: TensorRT does not take it.
    """
    engine = start(runtime.Runtime, runtime).deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendError(
            f"TensorRT {runtime.__version__} does not load its plan of {name!r} "
            f"({open_logger(runtime).reason()}); build it again with 'medclipsam export', or use "
            "--backend torch"
        )
    return engine
