"""What ``auto`` becomes, and what of a device and its libraries a run records."""

from types import SimpleNamespace

import pytest
import torch
from models import CPU

from medclipsam.engine.backends import arithmetic, find_runtime
from medclipsam.engine.backends.defaults import ROWS, settle
from medclipsam.engine.config import make_config, parse_settings
from medclipsam.engine.engine import identify_run
from medclipsam.engine.errors import BackendError, ConfigError
from medclipsam.engine.weights.bundle import Bundle

GPU = torch.device("cuda", 0)
GOOD = {"masks": 12, "mean_iou": 0.99, "worst_iou": 0.9}
BAD = [{}, {**GOOD, "masks": 0}, {**GOOD, "mean_iou": 0.96}, {**GOOD, "worst_iou": 0.7}]


def bundle(**exports):
    return Bundle(None, {"exports": exports, "files": {}})


def exported(kind, figures):
    entry = {"parity": figures} if kind == "onnx" else {"machines": {"here": {"parity": figures}}}
    return bundle(**{kind: {"bf16": entry, "fp32": {"parity": GOOD}}})


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDCLIPSAM_HOME", str(tmp_path))  # where no trial was made
    facts = SimpleNamespace(name="NVIDIA X", major=9, minor=0, total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: (facts.major, facts.minor)
    )
    monkeypatch.setattr(arithmetic, "find_driver", lambda: "580.1")
    return facts


def settled(settings, given, device, backend="torch"):
    found = settle(make_config(settings), given, device, backend)
    return found.saliency.rows, found.precision


def test_a_cpu_computes_in_float32_whatever_is_on_record():
    assert settled({}, exported("onnx", GOOD), CPU) == (ROWS, "fp32") == (64, "fp32")
    asked = {"saliency": {"rows": 9}, "precision": "bf16"}
    assert settled(asked, bundle(), CPU) == (9, "bf16")


def test_rows_are_sized_to_the_device(gpu):
    assert settled({}, bundle(), GPU)[0] == 256
    gpu.total_memory = 12 << 30
    assert settled({}, bundle(), GPU)[0] == 64
    assert settled({"saliency": {"rows": 100}}, bundle(), GPU)[0] == 100


@pytest.mark.parametrize("kind", ["onnx", "tensorrt"])
def test_bf16_needs_masks_that_were_found_the_same(kind, gpu):
    assert settled({}, exported(kind, GOOD), GPU)[1] == "bf16"
    for figures in BAD:
        assert settled({}, exported(kind, figures), GPU)[1] == "fp32"
    assert settled({"precision": "fp32"}, exported(kind, GOOD), GPU)[1] == "fp32"
    gpu.major = 7  # no bf16 there
    assert settled({}, exported(kind, GOOD), GPU)[1] == "fp32"


@pytest.mark.parametrize("backend", ["onnx", "onnx-tensorrt", "tensorrt"])
def test_an_exported_graph_answers_for_itself(backend, gpu):
    kind = backend.removesuffix("-tensorrt")
    other = "onnx" if kind == "tensorrt" else "tensorrt"
    assert settled({}, exported(kind, GOOD), GPU, backend)[1] == "bf16"
    assert settled({}, exported(other, GOOD), GPU, backend)[1] == "fp32"


def test_cuda_graphs_are_a_switch():
    assert make_config().cuda_graphs
    assert not make_config(parse_settings(("cuda_graphs=false",))).cuda_graphs
    assert make_config({"cuda_graphs": True}).cuda_graphs
    with pytest.raises(ConfigError, match="cuda_graphs is true or false, got 'no'"):
        make_config({"cuda_graphs": "no"})


def test_a_run_records_its_gpu_and_runtime(gpu, monkeypatch):
    """Another driver, card or library may give other bytes: such a run is not gone on with."""
    found = identify_run(GPU, "onnx", {"onnxruntime": "1"})
    assert found["device"] == "cuda" and found["runtime"] == {"onnxruntime": "1"}
    machine = found["machine"]
    assert {"gpu", "capability", "driver", "cuda", "cudnn"} == set(machine)
    assert machine["gpu"] == "NVIDIA X"
    assert (machine["capability"], machine["driver"]) == ("9.0", "580.1")
    gpu.name = "NVIDIA Y"
    assert identify_run(GPU, "onnx", {"onnxruntime": "1"}) != found

    def silent():
        raise BackendError("no driver's library")

    monkeypatch.setattr(arithmetic, "find_driver", silent)
    assert identify_run(GPU, "torch", {})["machine"]["driver"] == "unknown"
    assert identify_run(CPU, "torch", {}) == {"device": "cpu", "backend": "torch"}


def test_the_version_of_a_runtime_is_known():
    import onnxruntime

    assert find_runtime("torch") == {}
    assert find_runtime("onnx") == find_runtime("onnx-tensorrt")
    assert find_runtime("onnx") == {"onnxruntime": onnxruntime.__version__}
