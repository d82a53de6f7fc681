"""Saliency against plain autograd through the whole open_clip model, channel by channel."""

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from models import BIOMEDCLIP_SCALE, CPU, pictures, spread_clip
from torch.nn import functional as F

from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.saliency import Question, SaliencyConfig, compute_saliency
from medclipsam.engine.saliency.contrast import contrasts
from medclipsam.engine.saliency.contrastcam import contrastcam
from medclipsam.engine.saliency.gradcam import gradcam
from medclipsam.engine.saliency.gscorecam import gscorecam
from medclipsam.engine.saliency.m2ib import m2ib
from medclipsam.engine.saliency.masks import channel_masks, gaussian_blur, scale_map, spot_masks
from medclipsam.engine.saliency.rows import Probe, run_probes
from medclipsam.engine.saliency.scorecam import scorecam
from medclipsam.engine.weights.bundle import Bundle, open_bundle
from medclipsam.engine.weights.models import build_clip

AUTOGRAD = 1e-4  # float32 in another order, times a logit scale of 85
DESCENT = 1e-2  # ten steps of Adam amplify the last bits of float32
GROUPING = 1e-3  # contrastcam solves a linear system; the order of its sums differs
TEXTS = ("brain mri showing a tumor", "breast ultrasound showing a cyst", "normal chest x-ray")


def looked_at(clip, rgb, text):
    """Patch tokens at norm1 of the last block and the logit's gradient there, by a hook."""
    seen = []
    hook = clip.model.visual.trunk.blocks[-1].norm1.register_forward_hook(
        lambda module, inputs, output: (output.retain_grad(), seen.append(output))[1]
    )
    pixels = normalised(clip, rgb).requires_grad_()
    logit = clip.model.logit_scale.exp() * cosine(clip, pixels, text)
    hook.remove()
    logit.backward()
    tokens = seen[0]
    return tokens[0, 1:].detach(), tokens.grad[0, 1:]


def normalised(clip, rgb):
    mean, std = torch.tensor(clip.mean), torch.tensor(clip.std)
    return ((rgb.permute(0, 2, 3, 1) - mean) / std).permute(0, 3, 1, 2).contiguous()


def cosine(clip, pixels, text):
    vector = clip.model.encode_image(pixels)[0]
    return (vector / vector.norm()) @ text


def encoded(clip, text):
    with torch.no_grad():
        vector = clip.model.encode_text(clip.tokenizer([text]))[0]
    return vector / vector.norm()


def stretch(values):
    return (values - values.min()) / (values.max() - values.min() + 1e-6)  # as step 3 has it


def reference_gscorecam(clip, rgb, text, k):
    tokens, gradient = looked_at(clip, rgb, text)
    patches, channels = tokens.shape
    side = math.isqrt(patches)
    importance = gradient.sum(0) / patches
    chosen = sorted(range(channels), key=lambda c: -float(importance[c]))[:k]
    pixels = normalised(clip, rgb)
    scores = [0.0] * channels
    for c in chosen:
        small = tokens[:, c].reshape(1, 1, side, side)
        large = F.interpolate(small, pixels.shape[2:], mode="bilinear", align_corners=True)
        with torch.no_grad():
            logit = clip.model.logit_scale.exp() * cosine(clip, pixels * stretch(large), text)
        scores[c] = float(logit)
    highest = max(scores)
    weights = [math.exp(s - highest) for s in scores]
    cam = torch.zeros(patches)
    for c in range(channels):
        cam += weights[c] / sum(weights) * tokens[:, c]
    return stretch(cam.clamp(min=0)).reshape(side, side)


def reference_gradcam(clip, rgb, text):
    tokens, gradient = looked_at(clip, rgb, text)
    cam = sum(gradient[:, c].mean() * tokens[:, c] for c in range(tokens.shape[1]))
    return stretch(cam.clamp(min=0)).reshape([math.isqrt(len(tokens))] * 2)


@pytest.fixture(scope="module")
def images(tiny_encoder):
    return pictures(tiny_encoder.image_size, 2, seed=60)


@pytest.fixture(scope="module")
def prompts(tiny_encoder):
    return tiny_encoder.encode_text(TEXTS)


@pytest.mark.parametrize("k", [5, 40, 1000])
def test_gscorecam_equals_autograd(tiny_bundle, tiny_encoder, images, prompts, k):
    maps = gscorecam(tiny_encoder, images, prompts, k)
    assert maps.shape == (2, 3, 12, 12) and maps.dtype == torch.float32
    for n, rgb in enumerate(images):
        for p, text in enumerate(TEXTS):
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


def test_the_published_layer_has_no_gradient(tiny_bundle, images, prompts):
    for target, dead in (("norm2", True), ("norm1", False)):
        encoder = ClipEncoder.open(tiny_bundle, CPU, target=target)
        embedding, maps, importance = encoder.features(encoder.normalise(images), prompts)
        assert embedding.shape == (2, 128) and maps.shape == (2, 128, 12, 12)
        assert importance.shape == (2, 3, 128)
        assert bool((importance == 0).all()) is dead
        assert maps.std() > 0.1


def test_an_inner_block_has_gradients_at_both_norms(tiny_bundle, images, prompts):
    for target in ("norm1", "norm2"):
        encoder = ClipEncoder.open(tiny_bundle, CPU, target=target, block=1)
        assert encoder.features(encoder.normalise(images), prompts)[2].abs().max() > 0


def test_features_are_those_of_open_clip(tiny_bundle, tiny_encoder, images, prompts):
    clip = tiny_bundle.clip
    embedding, maps, importance = tiny_encoder.features(tiny_encoder.normalise(images), prompts)
    with torch.no_grad():
        whole = F.normalize(clip.model.encode_image(normalised(clip, images)), dim=1)
    torch.testing.assert_close(embedding, whole, atol=1e-5, rtol=0)
    for p, text in enumerate(TEXTS):
        tokens, gradient = looked_at(clip, images[1:], encoded(clip, text))
        torch.testing.assert_close(maps[1].flatten(1), tokens.T, atol=1e-5, rtol=0)
        torch.testing.assert_close(importance[1, p], gradient.mean(0), atol=1e-5, rtol=1e-3)


def test_no_prompt_asks_for_no_gradient(tiny_encoder, images, prompts):
    *_, importance = tiny_encoder.features(tiny_encoder.normalise(images), prompts[:0])
    assert importance.shape == (2, 0, 128)


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


def test_texts_are_encoded_as_open_clip_does(tiny_bundle, tiny_encoder):
    """One by one and cut to their length, against a padded batch."""
    with torch.no_grad():
        batch = tiny_bundle.clip.model.encode_text(tiny_bundle.clip.tokenizer(list(TEXTS)))
    ours = tiny_encoder.encode_text(TEXTS)
    torch.testing.assert_close(ours, F.normalize(batch, dim=1), atol=1e-5, rtol=0)
    assert torch.equal(ours[1], tiny_encoder.encode_text(TEXTS[1:2])[0])


def test_ensembles_are_means_of_unit_embeddings(tiny_bundle, tiny_encoder):
    each = [encoded(tiny_bundle.clip, text) for text in TEXTS]
    mean = sum(each) / 3
    ensemble = tiny_encoder.encode_ensemble(TEXTS)
    torch.testing.assert_close(ensemble, mean / mean.norm(), atol=1e-5, rtol=0)
    assert (ensemble - each[0]).abs().max() > 0.01


@pytest.mark.parametrize("text", ["", "   ", "日本", "ξξξ ψψψ"])
def test_texts_without_words_are_refused(tiny_encoder, text):
    with pytest.raises(ConfigError, match="word"):
        tiny_encoder.encode_text([text])


def whole_rows(pixels):
    """A probe that asks for ``pixels`` as they are and gives back their embeddings."""
    return Probe(pixels.new_zeros(128), len(pixels), lambda a, b: pixels[a:b], lambda rows: rows)


def test_rows_do_not_depend_on_how_they_are_grouped(tiny_encoder):
    """The same bytes wherever a row stands in a batch and whoever shares the batch."""
    pixels = tiny_encoder.normalise(pictures(96, 21, seed=90))
    (everything,) = run_probes(tiny_encoder, [whole_rows(pixels)])
    assert everything.shape == (21, 128)
    torch.testing.assert_close(everything.norm(dim=1), torch.ones(21))
    for cuts in ((1, 20), (2, 15, 4), (0, 16, 0, 5), (17, 4), (7, 7, 7), (21,)):
        probes = [whole_rows(part) for part in pixels.split(cuts)]
        found = list(run_probes(tiny_encoder, probes))
        assert [len(rows) for rows in found] == list(cuts)
        parts = [rows for rows in found if len(rows)]
        assert torch.equal(torch.cat(parts), everything)


def test_images_do_not_change_each_other(tiny_encoder, images, prompts):
    """One queue over all images gives the bytes that each has alone."""
    questions = [Question(rgb, prompts[:2], prompts[2:]) for rgb in images]
    for method in ("gscorecam", "scorecam", "contrastcam", "gradcam", "m2ib"):
        config = SaliencyConfig(method, k=21)
        together = list(compute_saliency(tiny_encoder, questions, config))
        for question, answer in zip(questions, together, strict=True):
            (alone,) = compute_saliency(tiny_encoder, [question], config)
            assert torch.equal(answer.saliency, alone.saliency)
            assert torch.equal(answer.contrast, alone.contrast)


def test_only_the_last_batch_is_padded_and_rows_are_made_when_needed(tiny_encoder):
    calls, made = [], []
    encoder = replace(tiny_encoder, score=lambda rows: (calls.append(len(rows)), rows[:, 0, 0])[1])

    def probes():
        for n in range(50):

            def make(start, stop, n=n):
                made.append((n, start, stop))
                return torch.full((stop - start, 3, 1, 4), float(n))

            yield Probe(torch.zeros(4), 7, make, lambda rows: rows)
            if n >= 3:  # sixteen rows a batch: what is open is never more than three images
                assert done >= n - 3

    done = 0
    for n, rows in enumerate(run_probes(encoder, probes())):
        assert rows.shape == (7, 4) and (rows == n).all()
        done += 1
    assert done == 50 and calls == [16] * math.ceil(350 / 16)
    assert sum(stop - start for _, start, stop in made) == 350


def test_ten_prompts_cost_little_more_than_one(tiny_encoder, images):
    counts = {}
    for count in (1, 10):
        seen = []
        encoder = replace(
            tiny_encoder,
            score=lambda rows, seen=seen: (seen.append(rows), tiny_encoder.score(rows))[1],
        )
        texts = [f"brain mri showing a tumor {letter}" for letter in "abcdefghij"]
        gscorecam(encoder, images[:1], tiny_encoder.encode_text(texts[:count]), k=50)
        counts[count] = len(seen)
    assert counts[1] == math.ceil(50 / 16) and counts[10] <= math.ceil(128 / 16)
    assert counts[10] <= 2.6 * counts[1]


def test_scorecam_is_gscorecam_with_all_channels(tiny_encoder, images, prompts):
    assert torch.equal(
        scorecam(tiny_encoder, images, prompts), gscorecam(tiny_encoder, images, prompts, k=128)
    )


def reference_m2ib(clip, rgb, text, blocks, beta, seed):
    """The published loop over the whole open_clip model: a hook replaces the output of a block."""
    trunk = clip.model.visual.trunk
    seen = []
    hook = trunk.blocks[blocks - 1].register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        clip.model.encode_image(normalised(clip, rgb))
    hook.remove()
    tokens = seen[0]
    alpha = torch.full_like(tokens, 5.0).requires_grad_()
    noise = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([alpha], lr=1.0)
    for _ in range(10):
        lam = torch.sigmoid(alpha)
        mu, var = tokens * lam, (1 - lam) ** 2
        capacity = -0.5 * (1 + torch.log(var) - mu**2 - var)
        drawn = mu + var.sqrt() * torch.randn(10, *tokens.shape[1:], generator=noise)
        hook = trunk.blocks[blocks - 1].register_forward_hook(lambda *call, d=drawn: d)
        vectors = clip.model.encode_image(normalised(clip, rgb).expand(10, -1, -1, -1))
        hook.remove()
        loss = beta * capacity.mean() - F.cosine_similarity(vectors, text[None]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = torch.nansum(capacity.detach(), -1)[0, 1:]
    return stretch(found).reshape([math.isqrt(len(found))] * 2)


def test_m2ib_equals_the_published_loop(tiny_bundle, tiny_encoder, images, prompts):
    maps = m2ib(tiny_encoder, images, prompts, beta=0.1, seed=3)
    assert maps.shape == (2, 3, 12, 12)
    clip = tiny_bundle.clip
    for n, p in ((0, 0), (1, 2)):
        own = encoded(clip, TEXTS[p])
        expected = reference_m2ib(clip, images[n : n + 1], own, 3, 0.1, 3)
        assert (maps[n, p] - expected).abs().max() <= DESCENT
        alone = m2ib(tiny_encoder, images[n : n + 1], prompts[p : p + 1], beta=0.1, seed=3)
        assert torch.equal(alone[0, 0], maps[n, p])
    other = m2ib(tiny_encoder, images[:1], prompts[:1], beta=0.1, seed=4)
    assert not torch.equal(other[0, 0], maps[0, 0])


def test_presence_is_the_lead_over_the_nearest_rival():
    generator = torch.Generator().manual_seed(2)
    prompts, nulls = (F.normalize(torch.randn(n, 8, generator=generator)) for n in (3, 2))
    image = F.normalize(torch.randn(8, generator=generator), dim=0)
    found = contrasts(prompts, nulls, image)
    for p in range(3):
        rivals = [float(v @ image) for v in (*prompts[:p], *prompts[p + 1 :], *nulls)]
        assert float(found[p]) == pytest.approx(float(prompts[p] @ image) - max(rivals), abs=1e-6)
    alone = contrasts(prompts[:1], nulls, image)
    assert float(alone) == pytest.approx(float(prompts[0] @ image - (nulls @ image).max()))
    assert contrasts(prompts[:1], nulls[:0], image).isnan().all()
    assert contrasts(prompts, nulls[:0], image).isfinite().all()


def test_spots_are_gaussians_on_an_even_grid():
    masks = spot_masks(3, 0.1, 30, torch.arange(9))
    assert masks.shape == (9, 30, 30)
    for n, (row, column) in enumerate((r, c) for r in range(3) for c in range(3)):
        for y, x in ((0, 0), (4, 17), (29, 12), (15, 15)):
            dy = (y + 0.5) / 30 - (row + 0.5) / 3
            dx = (x + 0.5) / 30 - (column + 0.5) / 3
            expected = math.exp(-0.5 * (dy * dy + dx * dx) / 0.01)
            assert float(masks[n, y, x]) == pytest.approx(expected, abs=1e-6)
    assert torch.equal(spot_masks(3, 0.1, 30, torch.tensor([5, 0])), masks[[5, 0]])


def test_contrastcam_fills_its_range(tiny_encoder, images, prompts):
    maps = contrastcam(tiny_encoder, images, prompts[:2], prompts[2:])
    assert maps.shape == (2, 2, 48, 48) and maps.dtype == torch.float32
    assert maps.min() >= 0 and maps.max() <= 1
    peaks = maps.amax((2, 3))
    assert ((peaks > 0.99) | (peaks == 0)).all()  # 0 where nothing speaks for the prompt
    assert (peaks > 0.99).sum() >= 3 and (maps.amin((2, 3)) < 0.01).all()


@pytest.mark.parametrize("method", ["gscorecam", "gradcam"])
def test_prompts_and_images_do_not_mix(tiny_encoder, images, prompts, method):
    find = {"gscorecam": partial(gscorecam, k=20), "gradcam": gradcam}[method]
    together = find(tiny_encoder, images, prompts[:2])
    for n, p in ((0, 1), (1, 0)):
        alone = find(tiny_encoder, images[n : n + 1], prompts[p : p + 1])
        torch.testing.assert_close(alone[0, 0], together[n, p], atol=AUTOGRAD, rtol=0)


def test_contrastcam_weighs_null_and_other_prompts_equally(tiny_encoder, images, prompts):
    """Beside others, a prompt is what it is alone against the mean of null and others."""
    null = F.normalize(torch.randn(1, 128, generator=torch.Generator().manual_seed(1)))
    together = contrastcam(tiny_encoder, images, prompts, null)
    for n, p in ((0, 0), (1, 2)):
        others = prompts[[q for q in range(3) if q != p]].mean(0, keepdim=True)
        against = (null + others) / 2
        alone = contrastcam(tiny_encoder, images[n : n + 1], prompts[p : p + 1], against)
        torch.testing.assert_close(alone[0, 0], together[n, p], atol=GROUPING, rtol=0)


def test_contrastcam_takes_the_null_prompt_nearest_to_the_image(tiny_encoder, images, prompts):
    rgb = images[:1]
    embedding = tiny_encoder.score(tiny_encoder.normalise(rgb))
    far, near = prompts[1:], prompts[1:][(prompts[1:] @ embedding[0]).argmax()][None]
    expected = contrastcam(tiny_encoder, rgb, prompts[:1], near)
    for nulls in (far, far.flip(0)):
        found = contrastcam(tiny_encoder, rgb, prompts[:1], nulls)
        torch.testing.assert_close(found, expected, atol=GROUPING, rtol=0)


def planted_encoder(top, left, size=96, cells=12):
    """A model whose score is the brightness of two by two cells, and random channels."""
    block = size // cells
    generator = torch.Generator().manual_seed(top * 100 + left)
    noise = torch.randn(1, 128, 9, 9, generator=generator)
    channels = F.interpolate(noise, (cells, cells), mode="bilinear", align_corners=True)
    region = (slice(top * block, (top + 2) * block), slice(left * block, (left + 2) * block))

    def score(pixels):
        angle = pixels[(..., *region)].mean((1, 2, 3))
        return torch.stack([angle.cos(), angle.sin()], 1)

    def features(pixels, texts):
        maps = channels.expand(len(pixels), -1, -1, -1)
        return score(pixels), maps, torch.zeros(len(pixels), len(texts), 128)

    encoder = ClipEncoder(
        text=None, features=features, score=score, lower=None, upper=None, tokenizer=None,
        image_size=size, mean=(0.0,) * 3, std=(1.0,) * 3, logit_scale=1.0, device=CPU, rows=32,
    )  # fmt: skip
    rgb = torch.rand(1, 3, size, size, generator=generator) * 0.2
    rgb[(..., *region)] += 0.7
    return encoder, rgb


@pytest.mark.parametrize(("top", "left"), [(0, 0), (1, 8), (5, 5), (9, 2), (10, 10)])
def test_contrastcam_finds_the_only_region_that_counts(top, left):
    encoder, rgb = planted_encoder(top, left)
    prompt, null = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    cam = contrastcam(encoder, rgb, prompt, null)[0, 0]
    row, column = divmod(int(cam.argmax()), 48)
    assert top <= row / 4 < top + 2 and left <= column / 4 < left + 2


def test_contrastcam_sees_the_reverse_in_the_reverse_question():
    encoder, rgb = planted_encoder(5, 5)
    prompt, null = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    cam = contrastcam(encoder, rgb, null, prompt)[0, 0]
    assert cam[20:28, 20:28].max() < 0.2  # what speaks for the prompt speaks against the null


@pytest.mark.parametrize("shape", [(2, 3, 7, 9), (1, 1, 5, 4)])
def test_scaling_fills_the_range_and_constants_become_zeros(shape):
    maps = torch.randn(shape)
    maps[0, 0] = 3
    scaled = scale_map(maps)
    assert not scaled[0, 0].any()
    for row in scaled.reshape(-1, *shape[2:])[1:]:
        assert row.min() == 0 and row.max() == pytest.approx(1, abs=1e-5)


def test_channel_masks_keep_corners():
    maps = torch.rand(4, 6, 6)
    masks = channel_masks(maps, 36)  # 7 pixels a cell: every cell is hit
    assert masks.shape == (4, 1, 36, 36)
    corners = masks[:, 0][:, [0, 0, -1, -1], [0, -1, 0, -1]]
    expected = scale_map(maps)[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(corners, expected, atol=1e-4, rtol=0)


def test_blur_is_gaussian_and_keeps_constants():
    torch.testing.assert_close(
        gaussian_blur(torch.full((1, 3, 20, 31), 0.4), 3), torch.full((1, 3, 20, 31), 0.4)
    )
    dot = torch.zeros(1, 3, 41, 35)
    dot[0, 1, 20, 17] = 1
    blurred = gaussian_blur(dot, 2.0)
    assert not blurred[0, [0, 2]].any() and blurred.sum() == pytest.approx(1, abs=1e-5)
    ratio = float(blurred[0, 1, 22, 17] / blurred[0, 1, 20, 17])
    assert ratio == pytest.approx(math.exp(-0.5), rel=1e-4)
