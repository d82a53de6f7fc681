"""``--precision auto`` tries bf16 once for weights and device, and takes it if masks stay."""

import json

import cv2
import numpy as np
import pytest
import torch

from medclipsam.engine.backends import defaults
from medclipsam.engine.engine import Engine
from medclipsam.engine.run import trial
from medclipsam.engine.run.runner import RunOptions
from medclipsam.train.phantoms.phantoms import PROMPTS, TARGETS, make_phantom

pytestmark = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bf16 arithmetic"
)
WANTED = {target: PROMPTS[target] for target in TARGETS["mri"]}
SETTINGS = {"saliency": {"method": "gradcam"}}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The CPU in place of a device that is fast in bf16, a home, and an archive."""
    monkeypatch.setenv("MEDCLIPSAM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(defaults, "is_fast_in_bf16", lambda device: True)
    root = tmp_path / "scans"
    root.mkdir()
    (root / "0 bad.png").write_bytes(b"nothing")
    for n in range(3):
        pixels = make_phantom(7_000_000 + n, "mri", TARGETS["mri"]).pixels
        cv2.imwrite(str(root / f"{n}.png"), (pixels * 255).astype(np.uint8))
    return tmp_path


def open_engine(**settings):
    return Engine.open("phantom", "cpu", settings={**SETTINGS, **settings}, threads=1)


def precision(out):
    return json.loads((out / "run.json").read_text())["config"]["precision"]


def trials(home):
    return [json.loads(path.read_text()) for path in (home / "home/trials").glob("*.json")]


def test_bf16_is_tried_on_the_archive_and_remembered(here, monkeypatch):
    engine = open_engine()
    assert engine.undecided and engine.config.precision == "fp32"
    summary = engine.run(here / "scans", WANTED, here / "first")
    assert summary.counts["quarantined"] == 2 and precision(here / "first") == "bf16"
    (figures,) = trials(here)
    assert figures["images"] == 3 and 0 < figures["masks"] <= 6
    assert 0.97 <= figures["mean_iou"] <= 1

    def never(*_):
        raise AssertionError("tried again")

    monkeypatch.setattr(trial, "compare", never)
    again = open_engine()
    assert not again.undecided and again.config.precision == "bf16"
    again.run(here / "scans", WANTED, here / "first")  # the same run, gone on with
    exact = open_engine(precision="fp32")
    assert not exact.undecided
    exact.run(here / "scans", WANTED, here / "exact")
    assert precision(here / "exact") == "fp32"


@pytest.mark.parametrize("worst", [0.5, 0.0])
def test_masks_that_move_keep_float32(here, monkeypatch, worst):
    real = trial.compare
    monkeypatch.setattr(trial, "compare", lambda *given: {**real(*given), "worst_iou": worst})
    open_engine().run(here / "scans", WANTED, here / "run")
    assert precision(here / "run") == "fp32" and len(trials(here)) == 1
    assert not open_engine().undecided  # it is known now


def test_images_without_masks_decide_nothing(here):
    open_engine(presence=2.0).run(here / "scans", WANTED, here / "run", RunOptions())
    assert precision(here / "run") == "fp32" and not trials(here)


def test_figures_are_those_of_the_masks(here):
    """Against masks of the API, one pipeline with another threshold in place of bf16."""
    one, two = open_engine(), open_engine(crf={"tau": 1.3})
    rgb = [
        cv2.cvtColor(cv2.imread(str(here / f"scans/{n}.png")), cv2.COLOR_BGR2RGB) for n in range(3)
    ]
    overlaps = []
    for image in rgb:
        a, b = one.segment(image, WANTED), two.segment(image, WANTED)
        for label in WANTED:
            union = (a[label].mask | b[label].mask).sum()
            if union:
                overlaps.append((a[label].mask & b[label].mask).sum() / union)
    from medclipsam.engine.archive import Limits, open_archive
    from medclipsam.engine.prompts import make_prompts

    samples = trial.take_samples(open_archive(here / "scans"), make_prompts(WANTED), Limits())
    found = trial.compare(one.pipeline, two.pipeline, samples)
    assert found["images"] == 3 and found["masks"] == len(overlaps)
    assert found["mean_iou"] == pytest.approx(np.mean(overlaps))
    assert found["worst_iou"] == pytest.approx(np.min(overlaps))


def test_a_trial_that_cannot_be_read_is_made_again(here):
    open_engine().run(here / "scans", WANTED, here / "run")
    (path,) = (here / "home/trials").glob("*.json")
    for text in ("", "[]", "{"):
        path.write_text(text)
        assert open_engine().undecided
