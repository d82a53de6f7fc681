"""What computes in 16 bits, and what must not."""

import numpy as np
import onnx_ir as ir
import pytest
from exporting import inputs_of, model_of, run_plain, spec_of, torch_outputs

from medclipsam.export.emulation import emulate
from medclipsam.export.layers import relative_error
from medclipsam.export.onnx import finish, trace, write_model
from medclipsam.export.origin import modules_of

LOW = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
DIGEST = "0" * 64
NORMS = {"LayerNormalization", "ReduceMean", "ReduceL2", "Pow", "Sqrt"}


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("name", ["score", "features", "sam_encoder"])
def test_products_are_low_and_islands_are_not(name, precision):
    model, island, low = model_of(name, precision), spec_of(name).island, LOW[precision]
    products, sums, inside = 0, 0, False
    for node in model.graph:
        scopes, dtype = modules_of(node), node.outputs[0].dtype
        inside |= any(scope.startswith(island) for scope in scopes)
        if node.op_type == "LayerNormalization":  # reads the residual stream, which is not cast
            assert node.inputs[0].producer().op_type == "Add", node
            sums += 1
        if inside or node.op_type in NORMS:
            assert dtype not in LOW.values(), node
        elif node.op_type in ("MatMul", "Gemm"):
            assert dtype == low, node
            products += 1
    assert inside and products >= 12 and sums >= 8
    weights = [v.const_value for v in model.graph.initializers.values() if v.dtype == low]
    assert sum(weight.size for weight in weights) > 200_000


@pytest.mark.parametrize("precision", LOW)
def test_nothing_is_cast_for_its_shape(precision):
    shapes = [node for node in model_of("sam_encoder", precision).graph if node.op_type == "Shape"]
    assert shapes and not [n for n in shapes if n.inputs[0].producer().op_type == "Cast"]


@pytest.mark.parametrize("name", ["text", "sam_decoder"])
def test_small_graphs_stay_float32(name):
    types = {value.dtype for node in model_of(name, "fp16").graph for value in node.outputs}
    assert not types & set(LOW.values())


@pytest.mark.parametrize("name", ["score", "sam_encoder"])
def test_emulation_is_near_what_the_runtime_computes(name, tmp_path):
    """Where ONNX Runtime has the precision: no further apart than both are from float32."""
    spec = spec_of(name)
    (path,) = write_model(model_of(name, "fp16"), tmp_path / "low.onnx")
    emulate(path, tmp_path / "emulated.onnx")
    inputs = inputs_of(spec, 2)
    (exact,) = torch_outputs(spec, inputs)
    (theirs,), (ours,) = (run_plain(p, spec, inputs) for p in (path, tmp_path / "emulated.onnx"))
    error = relative_error(ours, exact)[0]
    assert 1e-5 < error < 1e-2 and relative_error(theirs, exact)[0] <= 2 * error
    assert relative_error(ours, theirs)[0] <= 2 * error


def test_emulation_rounds_every_result(tmp_path):
    model = model_of("score", "bf16")
    low = [node for node in model.graph if node.outputs[0].dtype == LOW["bf16"]]
    (path,) = write_model(model, tmp_path / "low.onnx")
    emulate(path, tmp_path / "emulated.onnx")
    rounded = 0
    for node in ir.load(tmp_path / "emulated.onnx").graph:
        rounded += node.outputs[0].dtype == LOW["bf16"]
        given = {value.dtype for value in node.inputs if value is not None}
        assert node.op_type == "Cast" or LOW["bf16"] not in given
    assert rounded == len(low) > 40


def test_what_fp16_cannot_hold_becomes_values_that_are_not_finite(tmp_path):
    """float16 ends at 65504; parity counts what comes of it."""
    spec = spec_of("score")
    model = trace(spec)
    bias = model.graph.initializers["model.visual.trunk.blocks.1.mlp.fc1.bias"]
    values = bias.const_value.numpy().copy()
    values[0] = 1e5
    bias.const_value = ir.Tensor(values, name=bias.name)
    with np.errstate(over="ignore"):
        finish(model, spec, DIGEST, "fp16")
    (path,) = write_model(model, tmp_path / "low.onnx")
    (found,) = run_plain(path, spec, inputs_of(spec, 1))
    assert relative_error(found, found)[2] == found.size
