"""Every operator of every exported graph is one that TensorRT's parser reads, in that type."""

import dataclasses
import json
from pathlib import Path

import pytest
from exporting import model_of, with_sam

from medclipsam.engine.weights.exports import GRAPHS
from medclipsam.engine.weights.models import SAM_PRESETS
from medclipsam.export.graphs import make_spec
from medclipsam.export.onnx import OPSET, build_model, finish, trace

LIST = json.loads((Path(__file__).parents[1] / "data" / "tensorrt_operators.json").read_text())
TYPES = {
    "FLOAT": "FP32", "FLOAT16": "FP16", "BFLOAT16": "BF16", "INT32": "INT32", "INT64": "INT64",
    "BOOL": "BOOL",
}  # fmt: skip
# restrictions of that list: inputs that must be constants, by operator
CONSTANT = {
    "Slice": (3,), "Squeeze": (1,), "Unsqueeze": (1,), "ReduceL2": (1,), "ReduceMean": (1,),
    "ReduceSum": (1,), "ReduceMax": (1,), "Pad": (3,), "CumSum": (1,),
}  # fmt: skip
PRECISIONS = ["fp32", "fp16", "bf16"]


def assert_supported(model):
    assert model.opset_imports == {"": OPSET} and OPSET <= 20
    for node in model.graph:
        assert node.domain == "" and node.op_type in LIST["operators"], node
        types = LIST["operators"][node.op_type]
        assert TYPES[node.inputs[0].dtype.name] in types, node
        for value in node.outputs:
            assert TYPES[value.dtype.name] in [*types, "INT64", "BOOL"], node
        for index in CONSTANT.get(node.op_type, ()):
            if index < len(node.inputs) and node.inputs[index] is not None:
                assert node.inputs[index].is_initializer(), node
        if node.op_type == "LayerNormalization":
            assert len(node.outputs) == 1
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.dtype.name in ("FLOAT", "INT64")


def test_the_list_refuses_what_it_does_not_hold():
    assert "NonZero" in LIST["operators"] and "Unique" not in LIST["operators"]
    assert "BF16" not in LIST["operators"]["NonZero"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_of_the_phantom_bundle(name, precision):
    assert_supported(model_of(name, precision))


@pytest.mark.parametrize(
    ("preset", "precision"),
    [("vit_b", "fp32")]
    + [
        pytest.param(preset, precision, marks=pytest.mark.long)
        for preset in ("vit_b", "vit_l", "vit_h", "medsam")
        for precision in PRECISIONS
        if (preset, precision) != ("vit_b", "fp32")
    ],
)
def test_sam_encoders_of_full_size(preset, precision):
    """Full width, image and windows; two blocks, one of each kind, since all are alike."""
    config = dataclasses.replace(SAM_PRESETS[preset], encoder_depth=2, global_blocks=(1,))
    assert_supported(build_model(with_sam(config), "sam_encoder", precision))


@pytest.mark.long
def test_sam_decoder_of_full_size():
    config = dataclasses.replace(SAM_PRESETS["vit_b"], encoder_depth=1)
    assert_supported(build_model(with_sam(config), "sam_decoder"))


@pytest.mark.long
@pytest.mark.parametrize("name", ["text", "features", "score"])
def test_biomedclip_of_full_size(name):
    from medclipsam.benchmarks.export import random_bundle

    bundle = random_bundle("biomedclip")
    spec = make_spec(bundle, name)
    model = trace(spec)
    for precision in PRECISIONS:
        assert_supported(finish(model.clone(), spec, bundle.digest, precision))
