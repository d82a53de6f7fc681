"""The graphs that ``medclipsam export`` wrote, in ONNX Runtime on one of its providers.

A session is opened for one shape, so that no shape is computed at run time and one provider
takes the whole graph; anything else is an error that names the nodes. Tensors are bound where
they lie: nothing is copied between torch and the runtime but what a captured CUDA graph holds.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medclipsam.engine.backends import refuse_gradients
from medclipsam.engine.backends.session import (
    compute_stream,
    device_index,
    load_runtime,
    open_session,
)
from medclipsam.engine.errors import BackendError
from medclipsam.engine.weights.bundle import Bundle
from medclipsam.engine.weights.exports import GRAPHS, find_export, graph_file

DTYPES = {"tensor(float)": torch.float32, "tensor(int64)": torch.int64}
FIRST = {"text": "T", "features": "B", "score": "R", "sam_encoder": "B", "sam_decoder": "K"}
PROMPTS = 8  # text rows of one ``features`` call; fewer are padded, more take several calls


def open_graph(
    bundle: Bundle,
    name: str,
    device: torch.device,
    provider: str,
    batch: int | None = None,
    capture: bool = True,
    precision: str = "fp32",
    target: str = "norm1",
    block: int = -1,
) -> Callable[..., Any]:
    """See ``medclipsam.engine.backends.open_graph``.

    Args:
        provider: ``cpu``, ``cuda`` or ``tensorrt``.

    Raises:
        BackendError: not exported so, for other weights or another image size, or the provider
            does not take the whole graph.
        BundleError: a file is missing or altered.
        OutputError: the engines that ``tensorrt`` built cannot be stored.
    """
    if name not in GRAPHS:
        raise BackendError(f"unknown graph {name!r}; choose from {', '.join(GRAPHS)}")
    if name == "features" and (target, block) != ("norm1", -1):
        refuse_gradients(f"saliency at {target} of block {block}", "onnx")
    load_runtime()
    path = graph_file(bundle, "onnx", precision, name)
    fixed: dict[str, int] = {}
    if batch is not None:
        fixed[FIRST[name]] = batch
        if name == "text":
            fixed["L"] = bundle.clip.tokenizer.context_length
        if name == "features":
            fixed["P"] = PROMPTS
    # sizes that are not fixed are built for in the middle of a run, and nothing is kept
    engines = _name_engines(bundle, name, precision, fixed) if fixed else ""
    capture = capture and bool(fixed) and provider == "cuda"
    session = open_session(path, provider, device, fixed, engines, capture)
    _require_match(session, bundle, name, precision)
    graph = Graph(session, device, fixed, capture=capture)
    if batch is None or name not in ("text", "features"):
        return graph
    return _Text(graph, fixed["L"]) if name == "text" else _Features(graph)


def _name_engines(bundle: Bundle, name: str, precision: str, fixed: Mapping[str, int]) -> str:
    """A name for one graph's file and sizes. ONNX Runtime's own tells neither weights nor sizes
    apart, and would take the engine of another graph of the same make."""
    path = f"onnx/{precision}/{name}.onnx"
    files = find_export(bundle, "onnx", precision)["files"]
    source = {key: files[key] for key in files if key == path or key.startswith(f"{path}.")}
    digest = hashlib.sha256(json.dumps([source, dict(fixed)], sort_keys=True).encode()).hexdigest()
    return f"{bundle.digest[:16]}-{name}-{precision}-{digest[:16]}"


@dataclass(frozen=True)
class _Bound:
    """Tensors bound to a session; they live as long as the binding does."""

    binding: Any
    inputs: list[Tensor]
    outputs: list[Tensor]


class Graph:
    """One session as a function of torch tensors on ``device``.

    Args:
        fixed: sizes of named dimensions that the session was opened for.
        capture: the session replays a CUDA graph, so its tensors keep their addresses: what
            comes in is copied into them, what goes out is a copy.
    """

    def __init__(
        self, session: Any, device: torch.device, fixed: Mapping[str, int], capture: bool = False
    ):
        self._session, self._device, self._fixed, self._capture = session, device, fixed, capture
        self._inputs, self._outputs = session.get_inputs(), session.get_outputs()
        self._held: _Bound | None = None

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Any:
        sizes = self._sizes(inputs)
        if not self._capture:
            bound = self._bind([tensor.contiguous() for tensor in inputs], sizes)
            self._run(bound)
            found = bound.outputs
        else:
            if self._held is None:
                self._held = self._hold(sizes)
            for held, tensor in zip(self._held.inputs, inputs, strict=True):
                held.copy_(tensor)
            self._run(self._held)
            found = [output.clone() for output in self._held.outputs]
        return found[0] if len(found) == 1 else tuple(found)

    @torch.inference_mode(False)  # they are written to in any mode
    def _hold(self, sizes: Mapping[str, int]) -> _Bound:
        return self._bind([self._empty(meta, sizes) for meta in self._inputs], sizes)

    def _sizes(self, inputs: Sequence[Tensor]) -> dict[str, int]:
        """Named dimensions of this call.

        Raises:
            BackendError: inputs of another number, kind, place or shape.
        """
        sizes = dict(self._fixed)
        expected = [(meta.shape, DTYPES[meta.type]) for meta in self._inputs]
        if len(inputs) != len(expected) or not all(
            _fits(tensor, shape, dtype, self._device, sizes)
            for tensor, (shape, dtype) in zip(inputs, expected, strict=True)
        ):
            got = [(list(t.shape), t.dtype, str(t.device)) for t in inputs]
            raise BackendError(f"this graph takes {expected} on {self._device}, got {got}")
        return sizes

    def _empty(self, meta: Any, sizes: Mapping[str, int]) -> Tensor:
        shape = [sizes[size] if isinstance(size, str) else size for size in meta.shape]
        return torch.empty(shape, dtype=DTYPES[meta.type], device=self._device)

    def _bind(self, inputs: list[Tensor], sizes: Mapping[str, int]) -> _Bound:
        binding = self._session.io_binding()
        outputs = []
        for meta, tensor in zip(self._inputs, inputs, strict=True):
            binding.bind_input(meta.name, *self._place(tensor))
        for meta in self._outputs:
            outputs.append(self._empty(meta, sizes))
            binding.bind_output(meta.name, *self._place(outputs[-1]))
        return _Bound(binding, inputs, outputs)

    def _place(self, tensor: Tensor) -> tuple[str, int, Any, list[int], int]:
        kind = np.int64 if tensor.dtype == torch.int64 else np.float32
        place = self._device.type, device_index(self._device)
        return *place, kind, list(tensor.shape), tensor.data_ptr()

    def _run(self, bound: _Bound) -> None:
        """On ``cuda`` in order with torch's stream: what is before it is waited for, and waits."""
        if self._device.type != "cuda":
            self._session.run_with_iobinding(bound.binding)
            return
        ours, torchs = compute_stream(self._device), torch.cuda.current_stream(self._device)
        ours.wait_stream(torchs)
        self._session.run_with_iobinding(bound.binding)
        torchs.wait_stream(ours)


def _fits(
    tensor: Tensor,
    shape: Sequence[int | str],
    dtype: torch.dtype,
    device: torch.device,
    sizes: dict[str, int],
) -> bool:
    """Whether ``tensor`` has this shape; named sizes that it sets go into ``sizes``."""
    if (tensor.dtype, tensor.ndim, tensor.device.type) != (dtype, len(shape), device.type):
        return False
    if device_index(tensor.device) != device_index(device):  # its address means nothing there
        return False
    return all(
        (sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted) == size
        for wanted, size in zip(shape, tensor.shape, strict=True)
    )


@dataclass(frozen=True)
class _Text:
    """Texts padded to the whole context: one shape for all of them."""

    graph: Graph
    context: int

    def __call__(self, tokens: Tensor) -> Tensor:
        missing = self.context - tokens.shape[1]
        return self.graph(F.pad(tokens, (0, missing)))  # with 0, which BERT masks


@dataclass(frozen=True)
class _Features:
    """``features`` in calls of ``PROMPTS`` texts, padded with zeros."""

    graph: Graph

    def __call__(self, pixels: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = []
        for part in texts.split(PROMPTS):
            padded = F.pad(part, (0, 0, 0, PROMPTS - len(part)))
            embedding, activation, importance = self.graph(pixels, padded)
            parts.append(importance[:, : len(part)])
        return embedding, activation, torch.cat(parts, 1)


def _require_match(session: Any, bundle: Bundle, name: str, precision: str) -> None:
    """Refuse a graph that says itself that it is another than the one asked for."""
    found = session.get_modelmeta().custom_metadata_map
    wanted = {"bundle": bundle.digest, "graph": name, "precision": precision}
    again = (
        f"export it again with 'medclipsam export {bundle.name} --to onnx --precision {precision}'"
    )
    for key, value in wanted.items():
        if found.get(f"medclipsam.{key}") != value:
            raise BackendError(
                f"the exported graph {name!r} in {precision} of {bundle.folder} is one of another "
                f"{key} ({found.get(f'medclipsam.{key}', 'unknown')[:16]}, expected "
                f"{value[:16]}); {again}"
            )
    if name == "text":
        return
    sam = bundle.sam_config
    side = bundle.clip.image_size if name in ("features", "score") else sam.image_size
    side = sam.image_size // sam.patch_size if name == "sam_decoder" else side
    got = session.get_inputs()[0].shape[-2:]
    if got != [side, side]:
        raise BackendError(
            f"the exported graph {name!r} of {bundle.folder} takes inputs of {got}, these weights "
            f"take {[side, side]}; {again}"
        )
