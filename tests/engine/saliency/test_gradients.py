"""gScoreCAM and Grad-CAM are those of plain autograd, channel by channel."""

import json
import math
from functools import partial

import pytest
import torch
from clip_autograd import AUTOGRAD, TEXTS, encoded, looked_at, reference_gscorecam, stretch
from models import BIOMEDCLIP_SCALE, CPU, pictures, spread_clip

from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.saliency.gradcam import gradcam
from medclipsam.engine.saliency.gscorecam import gscorecam
from medclipsam.engine.saliency.scorecam import scorecam
from medclipsam.engine.weights.bundle import Bundle, open_bundle
from medclipsam.engine.weights.models import build_clip


def reference_gradcam(clip, rgb, text):
    tokens, gradient = looked_at(clip, rgb, text)
    cam = sum(gradient[:, c].mean() * tokens[:, c] for c in range(tokens.shape[1]))
    return stretch(cam.clamp(min=0)).reshape([math.isqrt(len(tokens))] * 2)


@pytest.mark.parametrize(
    ("k", "texts"),
    [
        (5, TEXTS),
        (40, TEXTS[:2]),
        (1000, TEXTS[:1]),
        pytest.param(40, TEXTS, marks=pytest.mark.long),
        pytest.param(1000, TEXTS, marks=pytest.mark.long),
    ],
)
def test_gscorecam_equals_autograd(tiny_bundle, tiny_encoder, images, prompts, k, texts):
    maps = gscorecam(tiny_encoder, images, prompts, k)
    assert maps.shape == (2, 3, 12, 12) and maps.dtype == torch.float32
    for n, rgb in enumerate(images):
        for p, text in enumerate(texts):
            clip = tiny_bundle.clip
            expected = reference_gscorecam(clip, rgb[None], encoded(clip, text), k)
            assert expected.std() > 0.05  # something to compare
            assert (maps[n, p] - expected).abs().max() <= AUTOGRAD


def test_gscorecam_equals_autograd_on_the_shipped_bundle(images):
    bundle = open_bundle("phantom")
    encoder = ClipEncoder.open(bundle, CPU)
    for text in TEXTS:
        own = encoded(bundle.clip, text)
        expected = reference_gscorecam(bundle.clip, images[:1], own, 40)
        found = gscorecam(encoder, images[:1], own[None], 40)[0, 0]
        assert (found - expected).abs().max() <= AUTOGRAD


def test_gradcam_equals_autograd(tiny_bundle, tiny_encoder, images, prompts):
    maps = gradcam(tiny_encoder, images, prompts)
    for n, rgb in enumerate(images):
        for p, text in enumerate(TEXTS):
            clip = tiny_bundle.clip
            expected = reference_gradcam(clip, rgb[None], encoded(clip, text))
            assert (maps[n, p] - expected).abs().max() <= AUTOGRAD


def test_prompts_and_channels_matter(tiny_encoder, images, prompts):
    """What the published layer cannot do: another prompt, another map."""
    few, many = (gscorecam(tiny_encoder, images[:1], prompts, k)[0] for k in (5, 100))
    assert (few[0] - few[1]).abs().max() > 0.05 and (few[0] - many[0]).abs().max() > 0.05


BIOMEDCLIP = {
    "embed_dim": 512,
    "vision_cfg": {
        "timm_model_name": "vit_base_patch16_224",
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 224,
    },
    "text_cfg": {
        "hf_model_name": "text_config",
        "hf_tokenizer_name": "text_config",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": 256,
    },
}


@pytest.fixture
def biomedclip(tmp_path):
    """BiomedCLIP's architecture with random weights; nothing comes from a network."""
    from transformers import BertConfig, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "brain", "mri", "tumor", "a", "chest"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(str(tmp_path))
    BertConfig(vocab_size=30522).save_pretrained(str(tmp_path / "text_config"))
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": BIOMEDCLIP}))
    torch.manual_seed(5)
    clip = build_clip(tmp_path)
    spread_clip(clip, pictures(224, 2), ["brain mri", "chest", "a tumor"])
    return clip


@pytest.mark.long
def test_gscorecam_equals_autograd_at_full_size(biomedclip, tmp_path):
    bundle = Bundle(tmp_path, {})
    bundle.__dict__["clip"] = biomedclip  # stands in for the cached property
    encoder = ClipEncoder.open(bundle, CPU, rows=2)
    assert encoder.image_size == 224
    assert encoder.logit_scale == pytest.approx(BIOMEDCLIP_SCALE)
    rgb = pictures(224, 1, seed=70)
    text = "a tumor"
    maps = gscorecam(encoder, rgb, encoder.encode_text([text]), k=4)
    assert maps.shape == (1, 1, 14, 14)
    expected = reference_gscorecam(biomedclip, rgb, encoded(biomedclip, text), 4)
    assert expected.std() > 0.05
    assert (maps[0, 0] - expected).abs().max() <= AUTOGRAD
    dead = ClipEncoder.open(bundle, CPU, target="norm2").features
    assert not dead(encoder.normalise(rgb), encoder.encode_text([text]))[2].any()


def test_scorecam_is_gscorecam_with_all_channels(tiny_encoder, images, prompts):
    assert torch.equal(
        scorecam(tiny_encoder, images, prompts), gscorecam(tiny_encoder, images, prompts, k=128)
    )


@pytest.mark.parametrize("method", ["gscorecam", "gradcam"])
def test_prompts_and_images_do_not_mix(tiny_encoder, images, prompts, method):
    find = {"gscorecam": partial(gscorecam, k=20), "gradcam": gradcam}[method]
    together = find(tiny_encoder, images, prompts[:2])
    for n, p in ((0, 1), (1, 0)):
        alone = find(tiny_encoder, images[n : n + 1], prompts[p : p + 1])
        torch.testing.assert_close(alone[0, 0], together[n, p], atol=AUTOGRAD, rtol=0)
