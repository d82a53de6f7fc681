"""The benchmarks measure what they name: the published procedure, and contrastcam in use."""

import numpy as np
import pytest
import torch
from models import pictures

from medclipsam.benchmarks.ablation import Recipe, Rows, judge
from medclipsam.benchmarks.phantoms import auc
from medclipsam.benchmarks.rivals.published_saliency import straightforward
from medclipsam.benchmarks.saliency import count_flops
from medclipsam.benchmarks.schedules import all_rows, fill_bank
from medclipsam.engine.engine import Engine
from medclipsam.engine.saliency import gscorecam
from medclipsam.train.phantoms.phantoms import PROMPTS, TARGETS, make_phantom

ROUNDING = 1e-4  # float32 in another order, times a logit scale of 85
SOLVER = 1e-3  # two ways of solving one linear system for contrasts of a random model
TEXTS = ["brain mri showing a tumor", "brain mri showing enlarged ventricles"]


@pytest.mark.parametrize("k", [5, 60, 128])
def test_the_straightforward_run_gives_our_maps(tiny_bundle, tiny_encoder, k):
    rgb = pictures(96, 1, seed=5)
    ours = gscorecam(tiny_encoder, rgb, tiny_encoder.encode_text(TEXTS), k)[0]
    for text, expected in zip(TEXTS, ours, strict=True):
        found = straightforward(tiny_bundle.clip, rgb[0], text, k)
        torch.testing.assert_close(found, expected, atol=ROUNDING, rtol=0)


def test_the_first_row_of_the_ablation_is_contrastcam_with_all_rows():
    """Two ways of writing it, in two benchmarks."""
    engine = Engine.open("phantom", "cpu", threads=1)
    phantom, model = make_phantom(8_000_001, "mri", TARGETS["mri"]), engine.pipeline.encoder
    bank, _ = fill_bank(engine, phantom, [])
    prompts = model.encode_text([PROMPTS[t] for t in TARGETS["mri"]])
    nulls = model.encode_text(engine.config.null_prompts)
    pixels = engine.pipeline.to_pixels([engine.pipeline.fit(phantom.rgb)])[0]
    rows = Rows(model, pixels, prompts, nulls)
    expected = all_rows(bank)
    torch.testing.assert_close(rows.saliency(Recipe()), expected, atol=SOLVER, rtol=0)
    assert (rows.saliency(Recipe(direction="keep")) - expected).abs().max() > 0.01


def test_flops_are_those_that_torch_counts(tiny_bundle):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model, plain = tiny_bundle.clip.model, sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:  # sees no fused one
        model.encode_image(torch.zeros(1, 3, 96, 96))
    assert counter.get_total_flops() == pytest.approx(count_flops(model, cls_only=False), rel=0.02)
    assert count_flops(model, cls_only=True) < count_flops(model, cls_only=False)


def test_a_map_is_judged_on_the_image_grid():
    phantom = make_phantom(9, "mri", ("tumor", "ventricles"), size=(100, 140))
    truth = [phantom.masks[t].astype(np.float32) for t in ("tumor", "ventricles")]
    square = np.stack([m[:, 20:120] for m in truth])  # any map; here one that misses the sides
    figures = judge(phantom, np.stack([_squash(m) for m in truth]))
    assert figures["pointing"] == figures["sensitivity"] == 1 and figures["dsc"] > 0.9
    assert judge(phantom, 1 - square)["pointing"] == 0


def _squash(mask):
    import cv2

    return cv2.resize(mask, (96, 96), interpolation=cv2.INTER_AREA)


def test_auc_is_that_of_scikit_learn():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    present, absent = rng.integers(0, 9, 40) + 2, rng.integers(0, 9, 31)
    labels = [1] * 40 + [0] * 31
    expected = roc_auc_score(labels, np.concatenate([present, absent]))
    assert auc(list(present), list(absent)) == pytest.approx(expected)
