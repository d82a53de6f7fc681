"""Where an exported graph leaves its model: the first module whose output differs.

The exporter writes the module that each node comes from beside it. Every module's last node
becomes an output of a copy, run in ONNX Runtime without optimisation, and is compared with what
the module gives in torch, in the order of the graph.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medclipsam.engine.backends.session import SILENT
from medclipsam.export.graphs import Spec
from medclipsam.export.onnx import write_model
from medclipsam.export.origin import modules_of


def find_deviation(spec: Spec, path: Path, inputs: Sequence[Tensor], limit: float) -> str:
    """The first module beyond ``limit``, and by how much; or that none is.

    Args:
        spec: the graph in torch.
        path: the exported graph, which ONNX Runtime's CPU can run.
        inputs: on the CPU.
        limit: largest error relative to the largest output.
    """
    expected = _record(spec, inputs)
    for name, value in _run(path, spec, inputs, {name for name, _ in expected}):
        for module, output in expected:
            if module == name and output.shape == value.shape:
                error, _, nonfinite = relative_error(value, output.numpy())
                if nonfinite or not error <= limit:
                    more = f", {nonfinite} values not finite" if nonfinite else ""
                    return f"{name.removeprefix('model.')} is off first, by {error:.2g}{more}"
    return "no layer for itself is off"


def relative_error(found: np.ndarray, expected: np.ndarray) -> tuple[float, float, int]:
    """Largest and mean error, relative to the largest and mean expected value, and how many
    values found are not finite."""
    difference = np.abs(found.astype(np.float64) - expected)
    size = np.abs(expected)
    if not size.size:
        return 0.0, 0.0, 0
    nonfinite = int(np.count_nonzero(~np.isfinite(found)))
    tiny = np.finfo(np.float32).tiny
    return (
        float(difference.max() / max(size.max(), tiny)),
        float(difference.mean() / max(size.mean(), tiny)),
        nonfinite,
    )


def _record(spec: Spec, inputs: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
    """(module, output) of every call that gives a tensor."""
    seen: list[tuple[str, Tensor]] = []
    hooks = []
    for name, module in spec.module.named_modules():

        def keep(_: Any, __: Any, output: Any, name: str = name) -> None:
            if isinstance(output, Tensor):
                seen.append((name, output.float().clone()))

        hooks.append(module.register_forward_hook(keep))
    try:
        with torch.no_grad():
            spec.module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return [(name, output) for name, output in seen if name]


def _run(
    path: Path, spec: Spec, inputs: Sequence[Tensor], wanted: set[str]
) -> list[tuple[str, np.ndarray]]:
    """(module, output) of the exported graph, in its own order."""
    import onnx_ir as ir
    import onnxruntime

    model = ir.load(path)
    last: dict[str, Any] = {}
    for node in model.graph:
        for scope in reversed(modules_of(node)):  # the innermost is the one to name
            if scope in wanted:
                last.pop(scope, None)
                last[scope] = node.outputs[0]
    model.graph.outputs[:] = list(dict.fromkeys(last.values()))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "probed.onnx"
        write_model(model, copy)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = SILENT
        session = onnxruntime.InferenceSession(
            str(copy), options, providers=["CPUExecutionProvider"]
        )
        fed = {name: tensor.numpy() for name, tensor in zip(spec.inputs, inputs, strict=True)}
        names = list(dict.fromkeys(value.name for value in last.values()))
        found = dict(zip(names, session.run(names, fed), strict=True))
    return [(scope, found[value.name]) for scope, value in last.items()]
