"""Lower precision: the same masks, float32 where a softmax looks, and clear refusals."""

import numpy as np
import pytest
import torch
from models import CPU, pictures

from medclipsam.engine.backends import open_graph
from medclipsam.engine.backends.arithmetic import require_precision
from medclipsam.engine.backends.pytorch import encode_unread
from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.engine import Engine
from medclipsam.engine.errors import BackendError, ConfigError
from medclipsam.engine.evaluation.metrics import iou
from medclipsam.train.phantoms.phantoms import PROMPTS, TARGETS, make_phantom

MEAN_IOU, LEAST_IOU = 0.98, 0.9  # 8 bits of mantissa; saliency may move a box by a pixel
HALF = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bf16 arithmetic"
)


@HALF
@pytest.mark.parametrize("method", ["contrastcam", "gradcam"])
def test_masks_agree_in_bf16(method):
    settings = {"saliency": {"method": method}}
    full = Engine.open("phantom", "cpu", settings=settings, threads=1)
    half = Engine.open("phantom", "cpu", settings={**settings, "precision": "bf16"}, threads=1)
    found = []
    for seed, (modality, targets) in enumerate(TARGETS.items()):
        phantom = make_phantom(6_000_000 + seed, modality, targets)
        rgb = np.repeat((phantom.pixels * 255).astype(np.uint8)[..., None], 3, 2)
        wanted = {target: PROMPTS[target] for target in targets}
        ours, theirs = full.segment(rgb, wanted), half.segment(rgb, wanted)
        found += [iou(theirs[t].mask, ours[t].mask) for t in wanted]
        assert not all(np.array_equal(theirs[t].saliency, ours[t].saliency) for t in wanted)
    assert np.mean(found) >= MEAN_IOU and min(found) >= LEAST_IOU


@HALF
def test_what_a_softmax_sees_stays_float32(tiny_bundle, tiny_encoder):
    encoder = ClipEncoder.open(tiny_bundle, CPU, rows=16, precision="bf16")
    pixels = tiny_encoder.normalise(pictures(96, 3))
    texts = encoder.encode_text(["brain mri"])
    assert torch.equal(texts, tiny_encoder.encode_text(["brain mri"]))
    outputs = [encoder.score(pixels), *encoder.features(pixels, texts), encoder.lower(pixels)]
    exact = tiny_encoder.score(pixels)
    assert all(output.dtype == torch.float32 for output in outputs)
    torch.testing.assert_close(outputs[0].norm(dim=1), torch.ones(3))
    error = (outputs[0] - exact).abs().max()
    assert 0 < error < 0.05 and not torch.equal(outputs[0], outputs[0].bfloat16().float())


def test_a_precision_that_the_device_lacks_is_refused(tiny_bundle, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True, raising=False)
    with pytest.raises(BackendError, match="computes in fp32, bf16"):
        require_precision(CPU, "fp16")
    with pytest.raises(BackendError, match="'fp16' was asked for"):
        open_graph(tiny_bundle, "score", CPU, precision="fp16")
    with pytest.raises(ConfigError, match="precision must be auto, fp32, tf32, bf16 or fp16"):
        Engine.open("phantom", "cpu", settings={"precision": "fp8"})


def test_the_published_layer_warns(tiny_bundle, caplog):
    ClipEncoder.open(tiny_bundle, CPU, target="norm2")
    assert "exactly 0" in caplog.text
    caplog.clear()
    ClipEncoder.open(tiny_bundle, CPU, target="norm2", block=1)
    assert not caplog.text


def test_a_block_that_is_not_there_is_refused(tiny_bundle):
    with pytest.raises(ConfigError, match="has 4 blocks"):
        ClipEncoder.open(tiny_bundle, CPU, block=4)


@pytest.mark.parametrize("padding", [0, 3])
def test_a_text_is_encoded_alike_where_its_mask_is_not_read(tiny_bundle, padding):
    clip = tiny_bundle.clip
    tokens = clip.tokenizer(["brain mri showing a tumor", "a breast ultrasound with a cyst"])
    used = int((tokens != 0).sum(1).max())
    tokens = tokens[:, : used + padding]
    with torch.no_grad():
        expected, found = clip.model.encode_text(tokens), encode_unread(clip.model.text, tokens)
    assert (tokens == 0).any() and expected.shape == found.shape
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
