"""float32 means float32, TF32 only by its own name, and ``cuda`` is one device for good."""

import pytest
import torch
from models import CPU

from medclipsam.engine.backends import open_device, open_graph
from medclipsam.engine.backends.arithmetic import (
    compute_exactly,
    make_autocast,
    require_precision,
)
from medclipsam.engine.errors import BackendError

GPU = torch.device("cuda", 0)


MATMUL, CUDNN = torch.backends.cuda.matmul, torch.backends.cudnn
FRESH = (  # what a fresh process has
    (MATMUL, "allow_tf32", False),
    (CUDNN, "allow_tf32", True),
    (MATMUL, "allow_fp16_reduced_precision_reduction", True),
    (MATMUL, "allow_bf16_reduced_precision_reduction", True),
    (CUDNN, "benchmark", False),
    (CUDNN, "deterministic", False),
)
EXACT = [False, False, False, False, False, True]


def switches():
    return [getattr(owner, name) for owner, name, _ in FRESH]


@pytest.fixture(autouse=True)
def as_torch_starts():
    before = switches()
    for owner, name, value in FRESH:
        setattr(owner, name, value)
    yield
    for (owner, name, _), value in zip(FRESH, before, strict=True):
        setattr(owner, name, value)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))


@pytest.mark.parametrize("name, index", [("auto", 1), ("cuda", 1), ("cuda:0", 0), ("cuda:1", 1)])
def test_cuda_is_resolved_once_and_computes_exactly(name, index, two_gpus, monkeypatch):
    found = open_device(name)
    assert found == torch.device("cuda", index) and found.index == index
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert found.index == index
    assert switches() == EXACT


def test_the_cpu_has_no_index():
    assert open_device("cpu") == open_device("cpu:0") == torch.device("cpu")
    assert switches() != EXACT  # what is not used is not touched


def test_tf32_lasts_as_long_as_its_call():
    compute_exactly()
    with make_autocast(GPU, "tf32")():
        assert switches()[:2] == [True, True]
    assert switches() == EXACT
    with pytest.raises(ZeroDivisionError), make_autocast(GPU, "tf32")():
        raise ZeroDivisionError
    assert switches() == EXACT
    with make_autocast(GPU, "fp32")():
        assert switches() == EXACT


def test_what_has_no_tf32_refuses_it(tiny_bundle, two_gpus, monkeypatch):
    require_precision(GPU, "tf32")
    with pytest.raises(BackendError, match="computes in fp32"):
        require_precision(CPU, "tf32")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(BackendError, match="'cuda:0' computes in fp32, fp16"):
        require_precision(GPU, "tf32")
    for backend in ("onnx", "onnx-tensorrt", "tensorrt"):
        with pytest.raises(BackendError, match=r"'tf32' is torch's alone.*--backend torch"):
            open_graph(tiny_bundle, "score", GPU, backend, precision="tf32")
