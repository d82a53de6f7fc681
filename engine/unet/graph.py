"""Where a task model's arithmetic runs: one callable, (B, 3, S, S) normalised → (B, L, S, S)
float32 logits, in torch or in ONNX Runtime."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from medclipsam.engine.backends.arithmetic import (
    DTYPES,
    Autocast,
    make_autocast,
    require_precision,
)
from medclipsam.engine.backends.lanes import Lanes
from medclipsam.engine.backends.placement import place
from medclipsam.engine.errors import BackendError
from medclipsam.engine.unet.model import TaskModel
from medclipsam.engine.weights.exports import graph_file

GRAPH = "unet"
BACKENDS = ("torch", "onnx")

Graph = Callable[[Tensor], Tensor]


def open_unet(
    model: TaskModel,
    device: torch.device,
    backend: str = "torch",
    precision: str = "fp32",
    batch: int | None = None,
) -> Graph:
    """The network of ``model`` on ``device``.

    Args:
        batch: how many images always come; without it any number may.

    Raises:
        BackendError: an unknown backend, or one that cannot run it as asked.
        BundleError: an exported file is missing or altered.
    """
    if backend == "torch":
        require_precision(device, precision)
        net = place(model.net, device, [model.net], DTYPES.get(precision, torch.float32))
        run = partial(_run, net, make_autocast(device, precision))
        return Alone(run, 1, torch.get_num_threads()) if device.type == "cpu" else run
    if backend != "onnx":
        raise BackendError(
            f"a task model runs on {' or '.join(BACKENDS)}, got backend {backend!r}; choose one "
            "of these"
        )
    return _open_onnx(model, device, precision, batch)


class Alone(Lanes):
    """Images one by one on a core each: a convolution that several threads share, or that runs
    alone with all of them, rounds differently."""

    def __call__(self, *inputs: Tensor) -> Any:
        (pixels,) = inputs
        return torch.cat(list(self._lanes().map(self._run, pixels.split(self._part))))


@torch.inference_mode()
def _run(net: nn.Module, autocast: Autocast, pixels: Tensor) -> Tensor:
    with autocast():
        return net(pixels).float()


def _open_onnx(model: TaskModel, device: torch.device, precision: str, batch: int | None) -> Graph:
    from medclipsam.engine.backends import onnxruntime
    from medclipsam.engine.backends.session import load_runtime, open_session

    load_runtime()
    again = f"'medclipsam export {model.folder} --to onnx --precision {precision}'"
    if precision not in model.exports.get("onnx", {}):
        raise BackendError(
            f"{model.folder} has no onnx export in {precision}; make it with {again}"
        )
    path = graph_file(cast(Any, model), "onnx", precision, GRAPH)
    fixed = {} if batch is None else {"B": batch}
    session = open_session(path, device.type, device, fixed)
    found = session.get_modelmeta().custom_metadata_map
    wanted = {"bundle": model.digest, "graph": GRAPH, "precision": precision}
    for key, value in wanted.items():
        if found.get(f"medclipsam.{key}") != value:
            raise BackendError(
                f"the onnx export in {precision} of {model.folder} is one of other weights or "
                f"thresholds, or no {GRAPH}; export it again with {again}"
            )
    capture = bool(fixed) and device.type == "cuda"
    return onnxruntime.Graph(session, device, fixed, capture=capture)
