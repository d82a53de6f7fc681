"""Exported graphs give what torch gives, at sizes that no example had; files say what they are."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from exporting import inputs_of, model_of, phantom, run_plain, spec_of, torch_outputs, with_sam

from medclipsam.engine.backends.session import open_session
from medclipsam.engine.weights.exports import GRAPHS
from medclipsam.export import onnx as exporter
from medclipsam.export.emulation import emulate
from medclipsam.export.graphs import make_spec
from medclipsam.export.layers import relative_error
from medclipsam.export.onnx import build_model, hash_files, write_model

SAME = 1e-5  # float32 sums in another order
CLOSE = {"fp32": SAME, "fp16": 5e-3, "bf16": 5e-2}
CPU = torch.device("cpu")


def assert_close(found, expected, tolerance):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == np.float32 and ours.shape == theirs.shape
        error, _, nonfinite = relative_error(ours, theirs)
        assert error <= tolerance and not nonfinite


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_gives_what_torch_gives_at_any_size(name, precision, tmp_path):
    spec = spec_of(name)
    (path,) = write_model(model_of(name, precision), tmp_path / "graph.onnx")
    onnx.checker.check_model(str(path), full_check=True)
    if precision == "bf16":
        emulate(path, tmp_path / "emulated.onnx")
        path = tmp_path / "emulated.onnx"
    for rows in (1, 3, 5):
        inputs = inputs_of(spec, rows, seed=rows)
        assert_close(run_plain(path, spec, inputs), torch_outputs(spec, inputs), CLOSE[precision])


def test_a_file_says_what_it_is_and_not_where_it_was_made(tmp_path):
    (path,) = write_model(model_of("score", "fp16"), tmp_path / "score.onnx")
    model = onnx.load(path)
    facts = {prop.key: prop.value for prop in model.metadata_props}
    assert facts["medclipsam.bundle"] == phantom().digest
    assert (facts["medclipsam.graph"], facts["medclipsam.precision"]) == ("score", "fp16")
    assert facts["medclipsam.torch"] == torch.__version__.split("+")[0]
    assert [o.version for o in model.opset_import if not o.domain] == [exporter.OPSET]
    assert b"site-packages" not in path.read_bytes() and b".py" not in path.read_bytes()


def test_large_weights_go_to_a_file_of_their_own(tmp_path, monkeypatch):
    spec = spec_of("score")
    monkeypatch.setattr(exporter, "LARGE", 1)
    files = write_model(model_of("score"), tmp_path / "score.onnx")
    assert [file.name for file in files] == ["score.onnx", "score.onnx.data"]
    assert set(hash_files(files, tmp_path)) == {"score.onnx", "score.onnx.data"}
    inputs = inputs_of(spec, 2)
    assert_close(run_plain(files[0], spec, inputs), torch_outputs(spec, inputs), SAME)


def test_one_shape_leaves_no_shape_to_be_computed(tmp_path):
    fixed = {"text": {"T": 1, "L": 32}, "features": {"B": 1, "P": 8}, "score": {"R": 4},
             "sam_encoder": {"B": 2}, "sam_decoder": {"K": 3}}  # fmt: skip
    for name, sizes in fixed.items():
        (path,) = write_model(model_of(name), tmp_path / f"{name}.onnx")
        session = open_session(path, "cpu", CPU, sizes)
        parts = session.get_provider_graph_assignment_info()
        assert not {n.op_type for part in parts for n in part.get_nodes()} & {"Shape", "Range"}


def test_windows_that_pad_are_exported(tmp_path):
    """14 × 14 windows over 24 × 24 cells, as over the 64 × 64 of a full-size SAM."""
    config = dataclasses.replace(
        phantom().sam_config, image_size=192, window=14, encoder_depth=2, global_blocks=(1,)
    )
    bundle = with_sam(config)
    spec = make_spec(bundle, "sam_encoder")
    (path,) = write_model(build_model(bundle, "sam_encoder"), tmp_path / "sam.onnx")
    inputs = inputs_of(spec, 3)
    assert_close(run_plain(path, spec, inputs), torch_outputs(spec, inputs), SAME)


@pytest.mark.long
@pytest.mark.parametrize("name", ["text", "features", "score"])
def test_full_size_biomedclip(name, tmp_path):
    from medclipsam.benchmarks.export import random_bundle, random_inputs

    bundle = random_bundle("biomedclip")
    spec = make_spec(bundle, name)
    (path,) = write_model(build_model(bundle, name), tmp_path / "graph.onnx")
    for rows in (1, 2, 3):
        inputs = random_inputs(spec, rows)
        assert_close(run_plain(path, spec, inputs), torch_outputs(spec, inputs), 1e-3)
