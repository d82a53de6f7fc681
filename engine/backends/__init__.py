"""Where the arithmetic runs: one callable per graph, opened by name.

    text          (T, L) int64 token ids → (T, D) float32 unit rows
    features      (B, 3, S, S), (P, D) → embedding (B, D), activation (B, C, g, g),
                  importance (B, P, C)
    score         (R, 3, S, S) → (R, D) float32 unit rows
    sam_encoder   (B, 3, S, S) → (B, C, g, g)
    sam_decoder   (K, C, g, g), (K, 4) XYXY in input pixels → logits (K, 4g, 4g), IoU (K,)
    lower         (B, 3, S, S) → float32 (B, N, C) tokens after the first ``blocks`` blocks
    upper         (B, N, C) → (B, D) float32 unit rows; differentiable, the rest of the tower

``onnx`` runs what ``medclipsam export`` wrote in ONNX Runtime, on its CPU or CUDA provider,
``onnx-tensorrt`` on its TensorRT provider; ``tensorrt`` runs plans that it built from the same
graphs on this machine. ``lower`` and ``upper``, and ``features`` elsewhere than
at the first norm of the last block, take gradients: only ``torch`` has them.

``features``, ``score``, ``lower`` and ``sam_encoder`` compute in ``precision``; what decides
the numbers a softmax sees (last norm, projection, logits, importance) stays float32, and
so do the small graphs.

No silent fallback: a device, backend or precision that cannot run as asked says why and stops.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import torch

from medclipsam.engine.backends.arithmetic import compute_exactly, require_precision
from medclipsam.engine.backends.capture import Captured
from medclipsam.engine.backends.lanes import PARTS, Full, Lanes
from medclipsam.engine.errors import BackendError
from medclipsam.engine.weights.bundle import Bundle

BACKENDS = ("torch", "onnx", "onnx-tensorrt", "tensorrt")


def open_device(name: str = "auto") -> torch.device:
    """``auto`` is the current CUDA device if there is one, else the CPU.

    A CUDA device comes with its index, so that what is opened later means the same one, and with
    exact arithmetic (``arithmetic.compute_exactly``).

    Raises:
        BackendError: the named device does not exist here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as exc:
        raise BackendError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N") from exc
    if device.type not in ("cpu", "cuda"):
        raise BackendError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cpu":
        return torch.device("cpu")
    if (device.index or 0) >= torch.cuda.device_count():
        raise BackendError(
            f"device {name!r} was asked for, but torch sees {torch.cuda.device_count()} CUDA "
            "devices; run 'medclipsam doctor' to see why, or use --device cpu"
        )
    compute_exactly()
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.device("cuda", index)


def refuse_gradients(what: str, backend: str) -> NoReturn:
    """What only autograd can answer, asked of a backend that has none.

    Raises:
        BackendError: always; names ``what`` and the ways out.
    """
    raise BackendError(
        f"{what} needs gradients through the image tower, which backend {backend!r} does not have; "
        "use --backend torch, or contrastcam, gscorecam, scorecam or gradcam at the first norm of "
        "the last block"
    )


def find_runtime(backend: str) -> dict[str, str]:
    """Name and version of the runtime behind a backend; nothing for torch itself."""
    if backend == "torch":
        return {}
    if backend == "tensorrt":
        from medclipsam.engine.backends import tensorrt_runtime

        return {"tensorrt": tensorrt_runtime.load_runtime().__version__}
    from medclipsam.engine.backends import session

    return {"onnxruntime": session.load_runtime().__version__}


def open_graph(
    bundle: Bundle,
    name: str,
    device: torch.device,
    backend: str = "torch",
    batch: int | None = None,
    capture: bool = True,
    **settings: Any,
) -> Callable[..., Any]:
    """The graph ``name`` of ``bundle`` on ``device``.

    Args:
        batch: the most rows that the first input has. The graph always runs with as many:
            fewer are filled up, so that a row's bytes do not depend on their number, and
            compiled backends build for one shape. Without it any number may come.
        capture: on CUDA, launch work of one shape as a CUDA graph.
        settings: what the graph depends on besides weights: ``precision``, ``target`` and
            ``block`` of ``features``, ``blocks`` of ``lower`` and ``upper``.

    Raises:
        BackendError: an unknown backend, or one that cannot run this graph as asked.
        BundleError: an exported file is missing or altered.
    """
    if backend not in BACKENDS:
        raise BackendError(f"unknown backend {backend!r}; choose from {', '.join(BACKENDS)}")
    graph = _open(bundle, name, device, backend, batch, capture, **settings)
    if batch is None or name not in PARTS or isinstance(graph, Lanes):
        return graph
    if backend == "torch" and device.type == "cuda" and capture:
        graph = Captured(graph, device, name)
    return Full(graph, batch)


def _open(
    bundle: Bundle,
    name: str,
    device: torch.device,
    backend: str,
    batch: int | None,
    capture: bool,
    **settings: Any,
) -> Callable[..., Any]:
    precision = settings.get("precision", "fp32")
    if backend == "torch":
        require_precision(device, precision)
    elif precision == "tf32":
        raise BackendError(
            f"precision 'tf32' is torch's alone, backend {backend!r} runs exports in fp32, bf16 "
            "or fp16; use --backend torch, or another precision"
        )
    if backend == "torch":
        from medclipsam.engine.backends import pytorch

        return pytorch.open_graph(bundle, name, device, **settings)
    if backend == "onnx-tensorrt" and device.type != "cuda":
        raise BackendError(
            f"backend {backend!r} needs a CUDA device, got '{device}'; use --device cuda, or "
            "--backend onnx"
        )
    if backend == "tensorrt":
        from medclipsam.engine.backends import tensorrt

        return tensorrt.open_graph(bundle, name, device, batch, capture, **settings)
    from medclipsam.engine.backends import onnxruntime

    provider = "tensorrt" if backend == "onnx-tensorrt" else device.type
    return onnxruntime.open_graph(bundle, name, device, provider, batch, capture, **settings)
