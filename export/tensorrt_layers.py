"""Whether a built engine computes in the types that its ONNX graph asks for.

The graph says the type of every product and convolution; the engine's inspector says the types of
the tensors of every layer, and in ``Metadata`` which nodes a layer was made from. Layers are fused,
casts included, so that a layer shows the types of all its nodes.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medclipsam.engine.backends.tensorrt_runtime import open_logger
from medclipsam.engine.errors import BackendError

log = logging.getLogger(__name__)

HEAVY = {"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Attention"}
TYPES = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16"}
WORDS = (  # of the inspector, in TensorRT 10 and 11; the first that is found
    (re.compile(r"bf16|bfloat16", re.I), "bf16"),
    (re.compile(r"fp16|half|float16", re.I), "fp16"),
    (re.compile(r"fp32|float", re.I), "fp32"),
)
FIELDS = ("Datatype", "DataType", "Format/Datatype", "Format")
PARTS = ("Inputs", "Outputs", "Constants")
NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


@dataclass(frozen=True)
class Graph:
    """What an ONNX file says of itself.

    Attributes:
        wanted: heavy node → ``fp32``, ``fp16`` or ``bf16``, the type of what it multiplies.
    """

    wanted: dict[str, str]
    metadata: dict[str, str]


@dataclass(frozen=True)
class Layer:
    """A layer of an engine, and the floating types of all its tensors."""

    name: str
    nodes: frozenset[str]
    types: frozenset[str]


def read_graph(path: Path) -> Graph:
    """Types and metadata of the graph at ``path``; its weights are not read.

    Raises:
        BackendError: onnx is missing, or the file is no graph.
    """
    try:
        import onnx_ir
    except ImportError as exc:
        raise BackendError(
            f"export needs onnx and onnxscript ({exc}); pip install --upgrade onnx onnxscript"
        ) from exc
    model = onnx_ir.load(path)
    wanted = {}
    for node in model.graph:
        value = node.inputs[0] if node.op_type in HEAVY else None
        if value is not None and node.name and value.dtype is not None:
            wanted[node.name] = TYPES.get(value.dtype.name, value.dtype.name)
    return Graph(wanted, dict(model.metadata_props))


def inspect_engine(runtime: Any, engine: Any) -> list[Layer]:
    """Layers of an engine that was built with detailed profiling verbosity.

    Raises:
        BackendError: the inspector's answer is not understood.
    """
    inspector = engine.create_engine_inspector()
    answer = inspector.get_engine_information(runtime.LayerInformationFormat.JSON)
    try:
        return [_read_layer(layer) for layer in json.loads(answer)["Layers"]]
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise BackendError(
            f"the layers of the engine cannot be checked, TensorRT {runtime.__version__} describes "
            f"them as {answer[:80]!r} ({open_logger(runtime).reason()})"
        ) from exc


def _read_layer(layer: Mapping[str, Any]) -> Layer:
    tensors = [tensor for part in PARTS for tensor in layer.get(part, ())]
    words = [next((str(t[field]) for field in FIELDS if field in t), "") for t in tensors]
    words.append(str((layer.get("Weights") or {}).get("Type", "")))
    found = {next((kind for word, kind in WORDS if word.search(text)), None) for text in words}
    nodes = NODE.findall(layer.get("Metadata") or "")
    return Layer(layer["Name"], frozenset(nodes), frozenset(found - {None}))  # type: ignore[arg-type]


def check_layers(
    layers: Sequence[Layer], wanted: Mapping[str, str], name: str, precision: str
) -> dict[str, int]:
    """Compare an engine's layers with what its graph asks for.

    Returns:
        How many heavy nodes were found in each type; ``unseen`` are those that no layer names.

    Raises:
        BackendError: names the layers of another type, or says that nothing could be checked.
    """
    wrong = [
        f"{layer.name!r} has {kind}, which nothing in the graph is"
        for layer in layers
        for kind in sorted(layer.types - {*wanted.values(), "fp32"})
    ]
    counts = dict.fromkeys([*sorted(set(wanted.values())), "unseen"], 0)
    unseen = []
    for node, kind in wanted.items():
        made = [layer for layer in layers if node in layer.nodes and layer.types]
        if not made:
            unseen.append(node)
        elif any(kind in layer.types for layer in made):
            counts[kind] += 1
        else:
            has = ", ".join(sorted({t for layer in made for t in layer.types}))
            wrong.append(f"{made[0].name!r} computes {node} in {has} instead of {kind}")
    if wrong:
        more = f" and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise BackendError(
            f"the TensorRT engine of {name!r} is not what its {precision} graph asks for: "
            f"{'; '.join(wrong[:8])}{more}"
        )
    for kind in set(wanted.values()):
        if not counts[kind]:
            raise BackendError(
                f"the TensorRT engine of {name!r} does not show that any layer computes in {kind}, "
                f"which {sum(k == kind for k in wanted.values())} nodes of its graph ask for"
            )
    if unseen:
        log.warning("%s: no layer of the engine names %s", name, ", ".join(unseen[:8]))
    return {**counts, "unseen": len(unseen)}
