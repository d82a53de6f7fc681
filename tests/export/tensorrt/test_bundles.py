"""Plans that agree with torch are named in the bundle, others are not."""

import json
import sys

import pytest
from plans.built import CPU

from medclipsam.engine.config import make_config
from medclipsam.engine.errors import BackendError
from medclipsam.export.tensorrt import export_tensorrt
from medclipsam.export.tensorrt_layers import read_graph

CONFIG = make_config({"precision": "fp32", "saliency": {"rows": 64}})


@pytest.fixture
def published(bundle, tiny_bundle_folder):
    """The bundle as a folder with a description that can be written."""
    facts = {**bundle.description, "exports": bundle.exports}
    (bundle.folder / "bundle.json").write_text(json.dumps(facts))
    return bundle


def test_what_agrees_with_torch_is_named_in_the_bundle(trt11, published):
    judged = []

    def judge(staged):
        judged.append(staged.exports["tensorrt"]["fp32"]["machines"])
        return {"mean_iou": 1.0}

    plans = export_tensorrt(published, CONFIG, CPU, judge)
    facts = json.loads((published.folder / "bundle.json").read_text())
    assert facts["exports"]["onnx"] == published.exports["onnx"]
    (machine,) = facts["exports"]["tensorrt"]["fp32"]["machines"].values()
    assert machine["plans"] == {plan.sha256: plan.key.graph for plan in plans}
    assert machine["parity"] == {"mean_iou": 1.0} and machine["gpu"] == "Fake GPU"
    assert [next(iter(m.values()))["plans"] for m in judged] == [machine["plans"]]


def test_what_differs_from_torch_is_not(trt11, published):
    before = (published.folder / "bundle.json").read_bytes()

    def judge(staged):
        raise BackendError("worst mask IoU is 0.1")

    with pytest.raises(BackendError, match="worst mask"):
        export_tensorrt(published, CONFIG, CPU, judge)
    assert (published.folder / "bundle.json").read_bytes() == before


def test_missing_onnx_is_told(bundle, trt11, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    with pytest.raises(BackendError, match="pip install --upgrade onnx onnxscript"):
        read_graph(bundle.folder / "onnx/fp32/score.onnx")
