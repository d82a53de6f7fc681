"""A float32 ONNX graph → one that multiplies in 16 bits, as autocast would.

Products with their biases, attention and activation are low; what a sum of many blocks passes
through is not: residual stream, layer norms, position embeddings, and everything from the
``island`` on (last norm, projection, logits, importance; SAM's neck). The graph says every type
itself, which is what strongly typed runtimes take.
"""

from typing import Any

from medclipsam.export.origin import modules_of

PRODUCTS = {"MatMul", "Gemm"}
CARRIERS = {
    "Add", "Mul", "Div", "Gelu", "Softmax", "Transpose", "Reshape", "Slice", "Squeeze", "Unsqueeze",
    "Gather", "Split", "Expand", "Concat",
}  # fmt: skip


def lower_precision(model: Any, precision: str, island: str) -> None:
    """Change ``model`` (an ``onnx_ir.Model`` in float32) in place.

    Args:
        precision: ``bf16`` or ``fp16``.
        island: module name; nodes that depend on it stay float32.
    """
    import onnx_ir as ir

    dtype = {"bf16": ir.DataType.BFLOAT16, "fp16": ir.DataType.FLOAT16}[precision]
    products = PRODUCTS if precision == "bf16" else PRODUCTS | {"Conv"}  # bf16 from opset 22 on
    low = _choose(model.graph, island, products)
    caster = _Caster(model.graph, dtype)
    for node in list(model.graph):
        if node.op_type == "Shape":  # the same in every type
            continue
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in (ir.DataType.FLOAT, dtype):
                continue
            made_low = value.producer() in low
            if node in low and not made_low:
                node.replace_input_with(index, caster.to_low(value, node))
            elif node not in low and made_low:
                node.replace_input_with(index, caster.to_full(value, node))
    for node in low:
        for value in node.outputs:
            value.type = ir.TensorType(dtype)  # types may be shared: a new one, not a change


def _choose(graph: Any, island: str, products: set[str]) -> set[Any]:
    """Nodes that compute in low precision.

    A product is low before the island; what carries values on is low if all it carries is. A
    convolution's result (the patches, to which positions are added) starts the residual stream,
    which no carrier may take.
    """
    import onnx_ir as ir

    low: set[Any] = set()
    after: set[Any] = set()
    for node in graph:
        sources = [value.producer() for value in node.inputs if value is not None]
        if any(source in after for source in sources) or _inside(node, island):
            after.add(node)
            continue
        carried = [
            value.producer()
            for value in node.inputs
            if value is not None and value.dtype == ir.DataType.FLOAT and not value.is_initializer()
        ]
        if node.op_type in products or (
            node.op_type in CARRIERS
            and carried
            and all(source in low and source.op_type != "Conv" for source in carried)
        ):
            low.add(node)
    return low


def _inside(node: Any, module: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for name in modules_of(node))


class _Caster:
    """Each value is cast once, weights at export."""

    def __init__(self, graph: Any, dtype: Any):
        self._graph, self._dtype = graph, dtype
        self._low: dict[Any, Any] = {}
        self._full: dict[Any, Any] = {}

    def to_low(self, value: Any, before: Any) -> Any:
        if value not in self._low:
            make = self._weight if value.is_initializer() else self._cast
            self._low[value] = make(value, before, self._dtype)
        return self._low[value]

    def to_full(self, value: Any, before: Any) -> Any:
        import onnx_ir as ir

        if value not in self._full:
            self._full[value] = self._cast(value, before, ir.DataType.FLOAT)
        return self._full[value]

    def _cast(self, value: Any, before: Any, dtype: Any) -> Any:
        import onnx_ir as ir

        name = f"{value.name}_{dtype.short_name()}"
        node = ir.node("Cast", [value], {"to": dtype}, name=f"cast_{name}")
        node.outputs[0].name, node.outputs[0].type = name, ir.TensorType(dtype)
        node.outputs[0].shape = value.shape
        self._graph.insert_before(before, node)
        return node.outputs[0]

    def _weight(self, value: Any, before: Any, dtype: Any) -> Any:
        import onnx_ir as ir

        array = value.const_value.numpy().astype(dtype.numpy())
        name = f"{value.name}_{dtype.short_name()}"
        tensor = ir.Tensor(array, dtype=dtype, name=name)
        low = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape, const_value=tensor)
        self._graph.register_initializer(low)
        return low
