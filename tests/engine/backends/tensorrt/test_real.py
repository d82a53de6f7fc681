"""Plans of the real TensorRT on a GPU give what their graphs give."""

import pytest
import torch
from plans.published import CASES, assert_close, inputs, publish
from tensorrt_graphs import score_reference, write_exports

from medclipsam.engine.backends import tensorrt, tensorrt_runtime
from medclipsam.engine.errors import BackendError


def real_tensorrt():
    try:
        return torch.cuda.is_available() and bool(tensorrt_runtime.prove_runtime())
    except BackendError:
        return False


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    if not real_tensorrt():
        pytest.skip("needs TensorRT and a CUDA device")
    monkeypatch.setenv("MEDCLIPSAM_HOME", str(tmp_path / "home"))
    return torch.device("cuda", 0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_real_plans_compute_their_graphs(gpu, tiny_bundle, tmp_path, name):
    batch, reference = CASES[name]
    bundle = publish(write_exports(tiny_bundle, tmp_path), device=gpu)
    graph = tensorrt.open_graph(bundle, name, gpu, batch)
    for seed in range(3):
        given = [t + seed for t in inputs(tiny_bundle, name)]
        found = graph(*(t.to(gpu) for t in given))
        found = tuple(t.cpu() for t in found) if isinstance(found, tuple) else found.cpu()
        assert_close(found, reference(*given))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_real_low_plans_are_low(gpu, tiny_bundle, tmp_path, precision):
    bundle = publish(write_exports(tiny_bundle, tmp_path, precision), precision, gpu)
    graph = tensorrt.open_graph(bundle, "score", gpu, 3, precision=precision)
    (given,) = inputs(tiny_bundle, "score")
    found, expected = graph(given.to(gpu)).cpu(), score_reference(given)
    assert (found - expected).abs().max() <= 2e-2 * expected.abs().max()
