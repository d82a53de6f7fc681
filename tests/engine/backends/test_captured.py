"""Graphs that hold their tensors, as captured ones must. On the CPU nothing is captured, but all is
held and copied alike."""

from types import SimpleNamespace

import pytest
import torch
from models import CPU, pictures

from medclipsam.engine.backends import onnxruntime
from medclipsam.engine.backends.onnxruntime import Graph
from medclipsam.engine.backends.session import open_session

SIZES = {"score": {"R": 2}, "features": {"B": 2, "P": 3}, "text": {"T": 2, "L": 9}}


def inputs_of(name):
    torch.manual_seed(1)
    if name == "text":
        return (torch.randint(5, 90, (2, 9)),)
    pixels = pictures(96, 2) * 2 - 1
    return (pixels, torch.randn(3, 128)) if name == "features" else (pixels,)


def assert_equal(found, expected):
    found, expected = ((x,) if isinstance(x, torch.Tensor) else x for x in (found, expected))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def captured(bundle, name, fixed, capture):
    path = bundle.folder / f"onnx/fp32/{name}.onnx"
    return Graph(open_session(path, "cpu", CPU, fixed), CPU, fixed, capture=capture)


@pytest.mark.parametrize("first", [True, False], ids=["inference first", "inference second"])
@pytest.mark.parametrize(
    ("name", "fixed"),
    SIZES.items(),
)
def test_what_a_captured_graph_holds_serves_in_any_mode(exported_phantom, name, fixed, first):
    graph, plain = (captured(exported_phantom, name, fixed, capture) for capture in (True, False))
    kept = []
    for turn, inference in enumerate((first, not first, first)):
        inputs = [t + turn for t in inputs_of(name)]
        with torch.inference_mode(inference):
            found = graph(*inputs)
        expected = plain(*inputs)
        assert_equal(found, expected)
        kept.append((found, expected))
    for found, expected in kept:  # later calls change nothing that was given out
        assert_equal(found, expected)


def test_a_captured_graph_holds_no_history(exported_phantom):
    """It would grow with every call."""
    graph = captured(exported_phantom, "score", {"R": 2}, True)
    pixels = pictures(96, 2)
    found = graph(pixels.clone().requires_grad_())
    held = graph._held
    assert not any(t.requires_grad for t in (found, *held.inputs, *held.outputs))
    assert_equal(found, captured(exported_phantom, "score", {"R": 2}, False)(pixels))


def test_a_tensor_of_another_device_is_no_input(monkeypatch):
    """Its address would be read on the session's device."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    tensor = SimpleNamespace(dtype=torch.float32, ndim=1, shape=(2,), device=torch.device("cuda:1"))
    for device, fits in (("cuda:1", True), ("cuda", True), ("cuda:0", False), ("cpu", False)):
        assert onnxruntime._fits(tensor, ["R"], torch.float32, torch.device(device), {}) == fits
