"""ContrastCAM finds what speaks for a prompt and against all others."""

import pytest
import torch
from models import CPU
from torch.nn import functional as F

from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.saliency.contrast import contrast_directions, contrasts
from medclipsam.engine.saliency.contrastcam import contrastcam

GROUPING = 1e-3  # contrastcam solves a linear system; the order of its sums differs


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


def test_contrastcam_fills_its_range(tiny_encoder, images, prompts):
    maps = contrastcam(tiny_encoder, images, prompts[:2], prompts[2:])
    assert maps.shape == (2, 2, 48, 48) and maps.dtype == torch.float32
    assert maps.min() >= 0 and maps.max() <= 1
    peaks = maps.amax((2, 3))
    assert ((peaks > 0.99) | (peaks == 0)).all()  # 0 where nothing speaks for the prompt
    assert (peaks > 0.99).sum() >= 3 and (maps.amin((2, 3)) < 0.01).all()


def test_contrastcam_weighs_null_and_other_prompts_equally(tiny_encoder, images, prompts):
    """Beside others, a prompt is what it is alone against the mean of null and others."""
    null = F.normalize(torch.randn(1, 128, generator=torch.Generator().manual_seed(1)))
    embedding = tiny_encoder.embed(tiny_encoder.normalise(images))[0]
    together = contrast_directions(prompts, null, embedding)
    for p in range(3):
        others = prompts[[q for q in range(3) if q != p]].mean(0, keepdim=True)
        alone = contrast_directions(prompts[p : p + 1], (null + others) / 2, embedding)
        torch.testing.assert_close(alone[0], together[p])


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
        image_size=size, cells=cells, mean=(0.0,) * 3, std=(1.0,) * 3, logit_scale=1.0, device=CPU,
        rows=32,
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
