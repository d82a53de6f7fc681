"""``medclipsam export --to tensorrt`` from the shipped bundle to plans that a run takes."""

import json

import pytest
import torch
from click.testing import CliRunner
from fake_tensorrt import install

from medclipsam.engine.cli.main import main
from medclipsam.engine.home import home
from medclipsam.engine.weights.bundle import open_bundle
from medclipsam.export import parity, tensorrt_publish

pytestmark = pytest.mark.long


@pytest.fixture
def trt(monkeypatch, tmp_path):
    monkeypatch.setattr(tensorrt_publish, "require_gpu", lambda device: device)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Fake GPU")
    fake = install(monkeypatch, tmp_path / "home")
    monkeypatch.setattr(tensorrt_publish, "find_machine", lambda device: fake.machine)
    return fake


def medclipsam(*words):
    return CliRunner().invoke(main, words)


def export(*words):
    return medclipsam("export", "phantom", "--to", "tensorrt", "--device", "cpu", *words)


def test_plans_are_built_judged_named_and_verified(trt, monkeypatch):
    done = export()
    assert done.exit_code == 0, done.output
    assert "tensorrt in fp32 agrees with torch" in done.output and len(trt.built) == 5
    (machine,) = open_bundle("phantom").exports["tensorrt"]["fp32"]["machines"].values()
    assert machine["parity"]["mean_iou"] >= 0.999 and machine["sizes"]["score"] == 64
    assert export().exit_code == 0 and len(trt.built) == 5
    done = medclipsam("models", "verify", "phantom")
    assert done.exit_code == 0 and "tensorrt in fp32: mask IoU 1.0" in done.output
    before = json.dumps(open_bundle("phantom").exports)
    monkeypatch.setitem(parity.LIMITS, "fp32", parity.Limits(1e-9, 1, 1, 1))
    done = export("--set", "saliency.rows=32")
    assert done.exit_code == 1 and "plans of 'phantom' in fp32 are not published" in done.output
    assert json.dumps(open_bundle("phantom").exports) == before and len(trt.built) == 6
    report = home() / "exports" / "phantom-tensorrt-fp32.json"
    assert str(report) in done.output and json.loads(report.read_text())["failures"]
