"""Features, gradients and embeddings of texts are those of open_clip."""

import pytest
import torch
from clip_autograd import TEXTS, encoded, looked_at, normalised
from models import CPU
from torch.nn import functional as F

from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.errors import ConfigError


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
