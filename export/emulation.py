"""A graph in 16 bits → the same in float32, every result rounded to those 16 bits.

For runtimes without arithmetic in that precision (ONNX Runtime's CPU has none in bf16): sums are
kept in float32 and results rounded, as tensor cores do. It is what parity is judged on where the
graph itself cannot run; nothing of it is published.
"""

from pathlib import Path
from typing import Any


def emulate(source: Path, target: Path) -> None:
    """Write the graph in ``source``, emulated, to ``target`` (with ``target.data``, if large)."""
    import onnx_ir as ir

    from medclipsam.export.onnx import write_model

    model = ir.load(source)
    graph = model.graph
    low = {ir.DataType.BFLOAT16, ir.DataType.FLOAT16}
    for value in list(graph.initializers.values()):
        weight = value.const_value
        if weight is not None and value.dtype in low:
            value.const_value = ir.Tensor(weight.numpy().astype("float32"), name=value.name)
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in list(graph):
        for value in node.outputs:
            if value.dtype in low:
                _round(graph, node, value)
    write_model(model, target)


def _round(graph: Any, node: Any, value: Any) -> None:
    """Let what reads ``value`` read it rounded, in float32."""
    import onnx_ir as ir

    dtype, readers = value.dtype, list(value.uses())
    if node.op_type == "Cast":
        last, steps = value, [(ir.DataType.FLOAT, "wide")]
    else:
        value.type = ir.TensorType(ir.DataType.FLOAT)
        last, steps = value, [(dtype, "narrow"), (ir.DataType.FLOAT, "wide")]
    after = node
    for to, word in steps:
        cast = ir.node("Cast", [last], {"to": to}, name=f"{value.name}_{word}")
        cast.outputs[0].name, cast.outputs[0].type = f"{value.name}_{word}", ir.TensorType(to)
        cast.outputs[0].shape = value.shape
        graph.insert_after(after, cast)
        after, last = cast, cast.outputs[0]
    for reader, index in readers:
        reader.replace_input_with(index, last)
