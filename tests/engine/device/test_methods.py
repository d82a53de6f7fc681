"""Whole ways of images over a simulated device: the host waits in hand-overs only."""

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from simulated.record import allowed

from medclipsam.engine.segment import BoxMasks
from medclipsam.engine.types import Prompts

PROMPTS = Prompts(
    {"mass": ("breast ultrasound showing a mass",), "cyst": ("brain mri showing a cyst",)}
)
METHODS = {
    "gscorecam": {"k": 40},
    "scorecam": {"rows": 768},  # a batch an image
    "contrastcam": {},
    "gradcam": {},
    "gradcam at norm2": {"target": "norm2", "block": -2},
    "m2ib": {},
}
SIZES = [(97, 61), (301, 257), (120, 233)]
STEPS = 2  # of m2ib, which repeats itself
HERE = "tests/engine/device/test_methods.py"
methods = pytest.mark.parametrize("method", METHODS)
precisions = pytest.mark.parametrize("precision", ["fp32", "bf16"])


def frames(sizes=SIZES):
    noise = np.random.default_rng(3)
    return [noise.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def random_numbers():
    """What the device says: never two tensors the same."""
    noise = torch.Generator().manual_seed(2)

    def fill(shape, dtype):
        return torch.randn(shape, generator=noise).to(dtype) if dtype.is_floating_point else None

    return fill


def any_rows(tokens):
    """Stands in for the graph ``text``."""
    return torch.empty(len(tokens), 512, device=tokens.device)


@pytest.fixture
def ready(sim, open_pipeline, monkeypatch):
    """(method, precision) → a pipeline that has its prompts, before anything is recorded."""
    monkeypatch.setattr(import_module("medclipsam.engine.saliency.m2ib"), "STEPS", STEPS)

    def make(method, precision="fp32"):
        pipeline = open_pipeline(method.split()[0], precision, **METHODS[method])
        sim.fill = random_numbers()
        pipeline.encoder = replace(pipeline.encoder, text=any_rows)
        for texts in (*PROMPTS.texts.values(), *((text,) for text in pipeline.config.null_prompts)):
            pipeline.encode_prompts(Prompts({"any": texts}))
        return pipeline

    return make


def locate(pipeline, images):
    return list(pipeline.compute_saliency((image, PROMPTS) for image in images))


@methods
@precisions
def test_a_method_waits_in_handovers_only(sim, ready, method, precision):
    pipeline = ready(method, precision)
    with sim.recording() as record:
        found = locate(pipeline, frames())
    assert len(found) == len(SIZES)
    for maps, contrasts in found:
        assert len(maps) == 2
        assert all(0 <= cells.min() <= cells.max() <= 1 for cells in maps)
        assert np.isfinite(contrasts).all()
    allowed(record)
    assert record.syncs  # the answers came through hand-overs


def test_prompts_wait_in_handovers_only(sim, open_pipeline):
    pipeline = open_pipeline("gscorecam")
    with sim.recording() as record:
        assert pipeline.encode_prompts(PROMPTS).shape == (2, 512)
    allowed(record)


@precisions
def test_segmenting_waits_in_handovers_only(sim, open_pipeline, precision):
    segmenter = open_pipeline("gscorecam", precision).segmenter
    images, boxes = frames(), [np.zeros((count, 4)) for count in (0, 1, 3)]
    for group in boxes:
        group[:] = (3, 5, 40, 50)
    with sim.recording() as record:
        embeddings = segmenter.encode_image(images)
        found = segmenter.segment(embeddings, SIZES, boxes)
    assert found[0] is None
    assert [masks.mask.shape for masks in found[1:]] == SIZES[1:]
    assert all(isinstance(masks, BoxMasks) for masks in found[1:])
    allowed(record)


def spoil(step, plant):
    """``step``, which reads a number of its result from the device first."""

    def spoilt(*args, **settings):
        found = step(*args, **settings)
        plant(found[0] if isinstance(found, tuple) else found)
        return found

    return spoilt


def read_number(tensor):
    tensor.sum().item()


def read_distinct(tensor):
    torch.unique(tensor)


def move_number(tensor):
    tensor.new_tensor([1.0])


plants = pytest.mark.parametrize(
    ("plant", "kind"),
    [(read_number, "scalar"), (read_distinct, "size"), (move_number, "upload")],
)


@plants
@pytest.mark.parametrize(
    ("method", "step"),
    [
        ("gscorecam", "score"),
        ("gscorecam", "features"),
        ("contrastcam", "score"),
        ("gradcam", "features"),
        ("m2ib", "lower"),
        ("m2ib", "upper"),
    ],
)
def test_a_wait_planted_in_a_graph_is_seen(sim, ready, method, step, plant, kind):
    pipeline = ready(method)
    spoilt = spoil(getattr(pipeline.encoder, step), plant)
    pipeline.encoder = replace(pipeline.encoder, **{step: spoilt})
    assert_seen(sim, lambda: locate(pipeline, frames()[:1]), plant, kind)


@plants
@pytest.mark.parametrize(
    ("method", "step"),
    [
        ("gscorecam", "gscorecam.channel_masks"),
        ("contrastcam", "contrastcam.gaussian_blur"),
    ],
)
def test_a_wait_planted_in_a_step_is_seen(sim, ready, monkeypatch, method, step, plant, kind):
    def on_device(tensor):
        if tensor.device.type == "cuda":
            plant(tensor)

    name, attribute = step.split(".")
    module = import_module(f"medclipsam.engine.saliency.{name}")
    pipeline = ready(method)
    monkeypatch.setattr(module, attribute, spoil(getattr(module, attribute), on_device))
    assert_seen(sim, lambda: locate(pipeline, frames()[:1]), plant, kind)


@plants
@pytest.mark.parametrize("step", ["encoder", "decoder"])
def test_a_wait_planted_in_sam_is_seen(sim, open_pipeline, step, plant, kind):
    segmenter = open_pipeline().segmenter
    segmenter = replace(segmenter, **{step: spoil(getattr(segmenter, step), plant)})

    def segment():
        embeddings = segmenter.encode_image(frames()[:1])
        segmenter.segment(embeddings, SIZES[:1], [np.array([[3, 5, 40, 50]])])

    assert_seen(sim, segment, plant, kind)


def assert_seen(sim, work, plant, kind):
    line = plant.__code__.co_firstlineno + 1
    with sim.recording() as record:
        work()
    seen = {(sync.kind, sync.where[0]) for sync in record.syncs}
    assert (kind, f"{HERE}:{line}") in seen
    assert any(f"{HERE}:{line}" in what for what in record.unexpected)
