"""The exported graphs in TensorRT, from plans that ``medclipsam export`` built on this machine.

Every tensor's address is given explicitly: inputs and outputs are torch tensors, and TensorRT runs
on a stream of its own, before and after the work of torch's current one. Where all shapes are
fixed, a CUDA graph is captured once and replayed.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from medclipsam.engine.backends import refuse_gradients
from medclipsam.engine.backends.capture import SideStream
from medclipsam.engine.backends.plans import PlanKey, Unusable, make_key, read_plan
from medclipsam.engine.backends.shapes import OUTPUTS, TEXTS, Range, graph_ranges
from medclipsam.engine.backends.tensorrt_runtime import (
    current,
    load_engine,
    load_runtime,
    open_logger,
    require_gpu,
)
from medclipsam.engine.errors import BackendError
from medclipsam.engine.weights.bundle import Bundle
from medclipsam.engine.weights.exports import GRAPHS, find_export

log = logging.getLogger(__name__)

ALIGNMENT = 256  # bytes, of every address given to TensorRT
DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
}


def open_graph(
    bundle: Bundle,
    name: str,
    device: torch.device,
    batch: int | None = None,
    capture: bool = True,
    precision: str = "fp32",
    target: str = "norm1",
    block: int = -1,
    blocks: int | None = None,
) -> Callable[..., Any]:
    """See ``medclipsam.engine.backends.open_graph``.

    Raises:
        BackendError: TensorRT or the GPU is missing, or there is no plan for this graph, machine
            and batch that may be loaded; ``lower`` and ``upper`` always.
    """
    if name in ("lower", "upper"):
        refuse_gradients(f"graph {name!r}", "tensorrt")
    if name not in GRAPHS:
        raise BackendError(f"unknown graph {name!r}; choose from {', '.join(GRAPHS)}")
    if name == "features" and (target, block) != ("norm1", -1):
        refuse_gradients(f"saliency at {target} of block {block}", "tensorrt")
    device = require_gpu(device)
    runtime = load_runtime()
    entry = find_export(bundle, "tensorrt", precision)
    ranges = graph_ranges(bundle, name, batch)
    key = make_key(bundle, name, precision, ranges, device, runtime.__version__)
    with current(device):
        engine = load_engine(runtime, _find_plan(bundle, entry, key), name)
        stream, logger = SideStream(device), open_logger(runtime)
        graph = Graph(engine, name, ranges, device, stream, logger, capture)
    if name == "text":  # one by one, as they are: what stands beside a text changes nothing
        return lambda tokens: torch.cat([graph(row[None]) for row in tokens])
    return partial(_run_features, graph) if name == "features" else graph


def _find_plan(bundle: Bundle, entry: Mapping[str, Any], key: PlanKey) -> bytes:
    try:
        plan, sha256 = read_plan(key)
        if sha256 not in entry.get("machines", {}).get(key.machine, {}).get("plans", {}):
            raise Unusable("it has not passed the comparison with torch")
        return plan
    except Unusable as exc:
        raise BackendError(
            f"bundle {bundle.name!r} has no TensorRT plan of {key.graph!r} in {key.precision} for "
            f"{key.shapes} here: {exc}; build it with 'medclipsam export {bundle.name} --to "
            f"tensorrt --precision {key.precision}' on this machine, with the saliency.rows, "
            "segment.batch and segment.boxes of the run"
        ) from exc


class Graph:
    """One engine as a function of torch tensors on ``device``; calls from threads take turns."""

    def __init__(
        self,
        engine: Any,
        name: str,
        ranges: Mapping[str, Range],
        device: torch.device,
        stream: SideStream,
        logger: Any,
        capture: bool = True,
    ):
        self._name, self._ranges, self._device = name, ranges, device
        self._stream, self._logger, self._lock = stream, logger, threading.Lock()
        self._engine = engine
        self._dtypes = _require_match(engine, name, ranges)
        self._context = engine.create_execution_context()
        if self._context is None:
            raise BackendError(
                f"TensorRT has no context for {name!r} ({logger.reason()}); free GPU memory, or "
                "use smaller batches"
            )
        self._fixed = capture and all(wanted.fixed for wanted in ranges.values())
        if self._fixed:
            self._hold()

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Any:
        self._check(inputs)
        with self._lock:
            outputs = self._replay(inputs) if self._fixed else self._run(inputs)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _check(self, inputs: Sequence[Tensor]) -> None:
        fits = len(inputs) == len(self._ranges) and all(
            (tensor.dtype, tensor.device) == (self._dtypes[name], self._device)
            and wanted.fits(tuple(tensor.shape))
            for tensor, (name, wanted) in zip(inputs, self._ranges.items(), strict=True)
        )
        if not fits:
            takes = ", ".join(f"{k} {v} {self._dtypes[k]}" for k, v in self._ranges.items())
            got = ", ".join(f"{list(t.shape)} {t.dtype} on {t.device}" for t in inputs)
            raise BackendError(
                f"the plan of {self._name!r} takes {takes} on {self._device}, got {got}"
            )

    @torch.inference_mode(False)  # they are written to in any mode
    def _hold(self) -> None:
        """Tensors that keep their addresses, and the captured graph that works on them."""
        self._held = [
            torch.zeros(wanted.most, dtype=self._dtypes[name], device=self._device)  # type: ignore[arg-type]
            for name, wanted in self._ranges.items()
        ]
        self._made = self._bind(self._held)
        with self._stream.entered():
            self._enqueue()  # TensorRT sets itself up in the first run
        try:
            self._launch = self._stream.capture(self._enqueue)
        except (RuntimeError, BackendError) as exc:
            log.warning("%s runs without a CUDA graph, it cannot be captured: %s", self._name, exc)
            self._launch = self._enqueue

    def _replay(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        outputs = [torch.empty_like(tensor) for tensor in self._made]
        with self._stream.entered():
            for held, tensor in zip(self._held, inputs, strict=True):
                held.copy_(tensor)
            self._launch()
            for output, made in zip(outputs, self._made, strict=True):
                output.copy_(made)
        return outputs

    def _run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        given = [_aligned(tensor) for tensor in inputs]  # named: they outlive the enqueueing
        outputs = self._bind(given)
        with self._stream.entered():
            self._enqueue()
        return outputs

    def _bind(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Give the context all shapes and addresses; returns new outputs."""
        context = self._context
        for name, tensor in zip(self._ranges, inputs, strict=True):
            self._require(context.set_input_shape(name, tuple(tensor.shape)), f"shape of {name}")
            self._require(context.set_tensor_address(name, tensor.data_ptr()), f"place of {name}")
        outputs = []
        for name in OUTPUTS[self._name]:
            shape = tuple(context.get_tensor_shape(name))
            self._require(min(shape, default=0) >= 0, f"size of {name}")
            output = torch.empty(shape, dtype=self._dtypes[name], device=self._device)
            self._require(context.set_tensor_address(name, output.data_ptr()), f"place of {name}")
            outputs.append(output)
        return outputs

    def _enqueue(self) -> None:
        self._require(self._context.execute_async_v3(self._stream.handle), "execution")

    def _require(self, done: bool, what: str) -> None:
        if not done:
            raise BackendError(
                f"TensorRT fails in {self._name!r}, {what}: {self._logger.reason()}; run again "
                "with --backend torch"
            )


def _aligned(tensor: Tensor) -> Tensor:
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def _require_match(engine: Any, name: str, ranges: Mapping[str, Range]) -> dict[str, torch.dtype]:
    """Types of all tensors of ``engine``, if it is what the graph's callers expect.

    Raises:
        BackendError: other tensors, or another image size.
    """
    found = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    if sorted(found) != sorted([*ranges, *OUTPUTS[name]]):
        raise BackendError(f"the plan of {name!r} has tensors {found}; export the bundle again")
    for key, wanted in ranges.items():
        least, usual, most = map(tuple, engine.get_tensor_profile_shape(key, 0))
        got = Range(least, usual, most)
        if not wanted.fits(most) or got != wanted.filled(most):
            raise BackendError(
                f"the plan of {name!r} takes {key} of {got}, these weights and batch sizes need "
                f"{wanted}; export the bundle again"
            )
    return {key: DTYPES[engine.get_tensor_dtype(key).name] for key in found}


def _run_features(graph: Graph, pixels: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``features`` in calls of 1…``TEXTS`` texts; none are given as one of zeros."""
    some = texts if len(texts) else texts.new_zeros(1, texts.shape[1])
    found = [graph(pixels, part) for part in some.split(TEXTS)]
    importance = torch.cat([third for _, _, third in found], 1)
    return found[0][0], found[0][1], importance[:, : len(texts)]
