"""TensorRT's fake in every version and in the newest, and a bundle with graphs."""

import pytest
from fake_tensorrt import install
from tensorrt_graphs import write_exports

VERSIONS = ["10.0.1.6", "11.4.0.106"]


@pytest.fixture(params=VERSIONS)
def trt(request, monkeypatch, tmp_path):
    return install(monkeypatch, tmp_path / "home", request.param)


@pytest.fixture
def trt11(monkeypatch, tmp_path):
    return install(monkeypatch, tmp_path / "home")


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    return write_exports(tiny_bundle, tmp_path)
