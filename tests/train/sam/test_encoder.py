"""What enters SAM: images, masks and boxes in its frame, and embeddings that are kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sam_samples import (
    CPU,
    SHORT,
    TINY,
    changed,
    quiet,
    tiny_sam,
    weights,
)

from medclipsam.engine.backends.arithmetic import make_autocast
from medclipsam.engine.backends.samencoder import encode_image
from medclipsam.engine.segment import Segmenter, inner_size
from medclipsam.engine.weights.models import build_sam
from medclipsam.train.sam.boxes import jitter_boxes, tight_boxes
from medclipsam.train.sam.data import (
    SamSamples,
    fit_mask,
    prepare_image,
)
from medclipsam.train.sam.encoder import embed_images, to_input
from medclipsam.train.sam.fit import train_sam


@pytest.mark.parametrize("fit", ["pad", "squash"])
@pytest.mark.parametrize("shape", [(50, 80), (97, 33), (64, 64), (1, 300)])
def test_images_enter_as_they_do_in_the_engine(fit, shape):
    config = replace(TINY, fit=fit)
    rgb = np.random.default_rng(2).integers(0, 256, (*shape, 3), np.uint8)
    samples = SamSamples(
        prepare_image(rgb, config)[None],
        np.array([inner_size(shape, config)]),
        np.ones((1, 64, 64), bool),
        np.zeros(1, np.int64),
        ["a"],
    )
    engine = Segmenter(None, None, config, CPU, 1, 1)
    assert to_input(build_sam(config), samples, np.array([0]))[0].equal(
        engine.prepare([engine.resize(rgb)])[0]
    )


def test_grey_images_enter_as_their_colour_would(drawn):
    sam, chosen = tiny_sam(), np.array([1, 4])
    colour = replace(drawn, images=np.repeat(drawn.images[..., None], 3, 3))
    assert to_input(sam, drawn, chosen).equal(to_input(sam, colour, chosen))


@pytest.mark.parametrize("shape", [(50, 80), (97, 33), (20, 20)])
def test_masks_are_brought_to_the_frame_by_their_nearest_pixel(shape):
    mask = np.random.default_rng(3).random(shape) < 0.5
    h, w = inner_size(shape, TINY)
    found = fit_mask(mask, (h, w), 64)
    rows = ((np.arange(h) + 0.5) * shape[0] / h).astype(int)
    columns = ((np.arange(w) + 0.5) * shape[1] / w).astype(int)
    differing = np.count_nonzero(found[:h, :w] != mask[np.ix_(rows, columns)])
    assert differing <= 0.02 * h * w  # ties between two pixels
    assert not found[h:].any() and not found[:, w:].any()


def test_boxes_stay_on_the_image(padded):
    inner = padded.inner[padded.source]
    boxes = jitter_boxes(np.random.default_rng(0), padded.masks, 0.4, 3.0, inner)
    assert (boxes >= 0).all() and (boxes[:, 2:] <= inner[:, ::-1]).all()
    assert (boxes[:, :2] < boxes[:, 2:]).all()
    still = jitter_boxes(np.random.default_rng(0), padded.masks, 0, 0, inner)
    np.testing.assert_array_equal(still, tight_boxes(padded.masks))


def test_a_frozen_encoder_is_frozen_and_its_embeddings_are_direct_ones(padded, tmp_path):
    sam, lines = tiny_sam(), []
    before = weights(sam)
    with torch.no_grad():
        direct = [encode_image(sam, to_input(sam, padded, np.array([n])))[0] for n in range(4)]
    train_sam(sam, padded, replace(SHORT, val_share=0.0), tmp_path, log=lines.append)
    moved = changed(sam, before)
    assert moved and not any("image_encoder" in name for name in moved)
    assert any("frozen" in line and "brightness" in line for line in lines)
    cached = np.fromfile(tmp_path / "embeddings.bin", np.float32)
    np.testing.assert_array_equal(cached.reshape(4, 32, 8, 8), torch.stack(direct).numpy())


def test_embeddings_go_on_where_they_were_stopped(padded, tmp_path, monkeypatch):
    sam, asked = tiny_sam(), []
    monkeypatch.setattr("medclipsam.train.sam.encoder.SAVED_EVERY", 1)
    embed = make_autocast(CPU, "fp32")
    whole = np.array(embed_images(sam, padded, embed, tmp_path / "a", {"x": 1}, quiet))

    def stop(*call, before=encode_image):
        asked.append(call)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return before(*call)

    monkeypatch.setattr("medclipsam.train.sam.encoder.encode_image", stop)
    with pytest.raises(KeyboardInterrupt):
        embed_images(sam, padded, embed, tmp_path / "b", {"x": 1}, quiet)
    with (tmp_path / "b/embeddings.bin").open("ab") as file:
        file.write(b"torn row")
    again = embed_images(sam, padded, embed, tmp_path / "b", {"x": 1}, quiet)
    np.testing.assert_array_equal(again, whole)
    assert len(asked) == 5
    embed_images(sam, padded, embed, tmp_path / "b", {"x": 2}, quiet)
    assert len(asked) == 9
