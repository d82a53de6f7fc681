"""A graph that was broken on purpose: its first wrong layer is named."""

import numpy as np
import onnx_ir as ir
import pytest
from exporting import inputs_of, model_of, spec_of

from medclipsam.export.layers import find_deviation, relative_error
from medclipsam.export.onnx import write_model

LIMIT = 1e-3


def broken(name, weight, factor):
    model = model_of(name)
    value = model.graph.initializers[weight]
    value.const_value = ir.Tensor(value.const_value.numpy() * np.float32(factor), name=weight)
    return model


@pytest.mark.parametrize(
    ("name", "weight", "layer"),
    [
        ("score", "model.visual.trunk.blocks.2.mlp.fc1.bias", "visual.trunk.blocks.2.mlp.fc1"),
        ("features", "model.visual.trunk.blocks.1.norm2.weight", "visual.trunk.blocks.1.norm2"),
        ("sam_encoder", "model.image_encoder.blocks.3.attn.proj.bias",
         "image_encoder.blocks.3.attn.proj"),
        ("text", "model.text.transformer.encoder.layer.1.output.LayerNorm.weight",
         "text.transformer.encoder.layer.1.output.LayerNorm"),
    ],
)  # fmt: skip
def test_the_first_wrong_layer_is_named(name, weight, layer, tmp_path):
    (path,) = write_model(broken(name, weight, 1.5), tmp_path / "graph.onnx")
    said = find_deviation(spec_of(name), path, inputs_of(spec_of(name), 2), LIMIT)
    assert said.startswith(f"{layer} is off first, by ")


def test_values_that_are_not_finite_are_counted(tmp_path):
    weight = "model.visual.trunk.blocks.0.attn.proj.bias"
    (path,) = write_model(broken("score", weight, np.inf), tmp_path / "graph.onnx")
    said = find_deviation(spec_of("score"), path, inputs_of(spec_of("score"), 2), LIMIT)
    assert said.startswith("visual.trunk.blocks.0.attn.proj is off first") and "not finite" in said


@pytest.mark.parametrize("name", ["text", "features", "score", "sam_encoder", "sam_decoder"])
def test_no_layer_of_a_sound_graph_is_named(name, tmp_path):
    (path,) = write_model(model_of(name), tmp_path / "graph.onnx")
    said = find_deviation(spec_of(name), path, inputs_of(spec_of(name), 2), LIMIT)
    assert said == "no layer for itself is off"


def test_errors_are_relative_to_what_was_expected():
    expected = np.array([[2.0, -4.0]], np.float32)
    most, mean, nonfinite = relative_error(np.array([[2.0, -3.0]], np.float32), expected)
    assert (most, nonfinite) == (0.25, 0) and mean == pytest.approx(0.5 / 3)
    assert relative_error(np.array([[np.nan, np.inf]]), expected)[2] == 2
    assert relative_error(expected[:0], expected[:0]) == (0.0, 0.0, 0)
