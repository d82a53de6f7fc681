"""Whole runs over a simulated device: the executor waits in hand-overs only."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from simulated.record import CUDA, FAKE, allowed
from torch.utils._python_dispatch import _disable_current_modes

from medclipsam.engine.archive import open_archive
from medclipsam.engine.boxes import extract_boxes
from medclipsam.engine.engine import Engine
from medclipsam.engine.pipeline import Pipeline
from medclipsam.engine.prompts import make_prompts
from medclipsam.engine.run.device.zero_shot import ZeroShotExecutor
from medclipsam.engine.run.ledger import Ledger
from medclipsam.engine.run.runner import run
from medclipsam.engine.saliency.rows import RowQueue
from medclipsam.engine.segment import Segmenter
from medclipsam.engine.types import Prompts
from medclipsam.engine.unet.executor import UnetExecutor
from medclipsam.engine.unet.graph import open_unet
from medclipsam.engine.unet.model import UnetConfig, build_unet
from medclipsam.engine.unet.pipeline import UnetPipeline
from medclipsam.engine.weights.bundle import Bundle

PROMPTS = {"mass": "breast ultrasound showing a mass", "cyst": "brain mri showing a cyst"}
METHODS = {"gscorecam": {"k": 40}, "contrastcam": {}, "gradcam": {}}
HERE = "tests/engine/device/test_runs.py"


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Pictures of several odd sizes, some of them alike."""
    root = tmp_path_factory.mktemp("scans")
    noise = np.random.default_rng(5)
    for n, size in enumerate([(97, 61), (61, 97), (128, 128), (97, 61), (33, 150)]):
        coarse = noise.integers(0, 256, (4, 4), np.uint8)
        cv2.imwrite(str(root / f"{n}.png"), cv2.resize(coarse, size[::-1]))
    return root


@pytest.fixture
def looked_at(sim, monkeypatch):
    """What the device says are random numbers, and every mask of the CRF is a spot or two."""
    noise = torch.Generator().manual_seed(2)

    def fill(shape, dtype):
        if dtype == torch.bool:
            return torch.rand(shape, generator=noise) < 0.5
        return torch.randn(shape, generator=noise) if dtype.is_floating_point else None

    sim.fill = fill
    return sim


@pytest.fixture
def engine(looked_at, open_pipeline):
    """(method, precision) → an engine on the simulated device."""
    extract_boxes(np.ones((2, 2), bool))

    def make(method, precision="fp32"):
        pipeline = open_pipeline(method, precision, **METHODS[method])
        bundle = Bundle(Path("simulated"), {"name": "simulated", "files": {}})
        return Engine(bundle, pipeline.config, pipeline, threads=2)

    return make


def outcomes(out):
    with Ledger(out / "ledger.sqlite") as ledger:
        return list(ledger.outcomes())


@pytest.mark.parametrize("busy", [0, 40])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_waits_in_handovers_only(
    looked_at, engine, archive, tmp_path, method, precision, busy
):
    opened = engine(method, precision)
    looked_at.busy(busy)
    with looked_at.recording() as record:
        summary = run(opened, open_archive(archive), make_prompts(PROMPTS), tmp_path / "run")
    found = outcomes(tmp_path / "run")
    assert summary.items == 5 and len(found) == 10
    assert {row.status for row in found} <= {"done", "absent"}
    assert {row.status for row in found} >= {"done"}  # SAM was asked
    stages = {stage.stage: stage.items for stage in summary.stages}
    assert stages["segment_encode"] and stages["segment_decode"]
    allowed(record)
    assert record.syncs


def read_number(tensor):
    tensor.sum().item()


def spoil(monkeypatch, owner, name, tensors_of):
    real = getattr(owner, name)

    def spoilt(*args, **settings):
        found = real(*args, **settings)
        for tensor in tensors_of(found):
            if tensor.device.type == "cuda":
                read_number(tensor)
        return found

    monkeypatch.setattr(owner, name, spoilt)


STEPS = {
    "embed_squares": (Pipeline, lambda found: [found]),
    "to_pixels": (Pipeline, lambda found: [found]),
    "_embed": (RowQueue, lambda found: [found]),
    "launch": (RowQueue, lambda found: found.tensors),
    "encode_resized": (Segmenter, lambda found: found),
    "prepare": (Segmenter, lambda found: [found]),
    "draw": (Segmenter, lambda found: found),
    "_unite": (Segmenter, lambda found: found),
    "_open_probe": (ZeroShotExecutor, lambda found: getattr(found, "tensors", ())),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_wait_planted_in_a_step_is_seen(looked_at, engine, archive, tmp_path, monkeypatch, step):
    opened = engine("gscorecam")
    owner, tensors_of = STEPS[step]
    spoil(monkeypatch, owner, step, tensors_of)
    with looked_at.recording() as record:
        run(opened, open_archive(archive), make_prompts(PROMPTS), tmp_path / "run")
    line = f"{HERE}:{read_number.__code__.co_firstlineno + 1}"
    assert any(what.endswith(line) or line in what for what in record.unexpected)


class Predicting:
    """A task model of random weights as a ``Method``."""

    threads = 2

    def __init__(self, precision):
        config = UnetConfig(labels=("mass",), thresholds=(0.5,))
        with _disable_current_modes(), FAKE:
            net = build_unet(config).eval()
        graph = open_unet(SimpleNamespace(net=net), CUDA, "torch", precision, 2)
        self.pipeline = UnetPipeline(graph, config, CUDA, 2)

    def decide(self, samples):
        return self

    def identity(self):
        return {}

    def describe(self):
        return {}

    def check_prompts(self, prompts):
        pass

    def open_executor(self, context):
        return UnetExecutor(self.pipeline, context)


@pytest.mark.parametrize("planted", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_task_model_waits_in_handovers_only(
    looked_at, archive, tmp_path, monkeypatch, precision, planted
):
    method = Predicting(precision)
    if planted:
        spoil(monkeypatch, UnetPipeline, "run", lambda found: [found])
    with looked_at.recording() as record:
        run(method, open_archive(archive), Prompts({"mass": ("mass",)}), tmp_path / "run")
    assert len(outcomes(tmp_path / "run")) == 5
    if planted:
        assert record.unexpected
    else:
        allowed(record)
        assert record.syncs
