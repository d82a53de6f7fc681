"""A tiny SAM and samples for it, without files."""

from dataclasses import replace

import numpy as np
import torch

from medclipsam.engine.segment import inner_size
from medclipsam.engine.weights.models import SamConfig, build_sam
from medclipsam.train.phantoms.phantoms import make_phantom
from medclipsam.train.sam.data import (
    SamSamples,
    fit_mask,
    prepare_image,
)
from medclipsam.train.sam.settings import SamTraining

CPU = torch.device("cpu")
TINY = SamConfig(
    image_size=64,
    patch_size=8,
    encoder_width=32,
    encoder_depth=2,
    encoder_heads=2,
    global_blocks=(1,),
    window=4,
    channels=32,
    decoder_heads=2,
    decoder_mlp=64,
)
SHORT = SamTraining(
    steps=7, batch=2, learning_rate=1e-3, warmup=2, val_share=0.3, validate_every=3, save_every=2
)
ALL = replace(SHORT, encoder=True, accumulate=2, recompute=True)


def quiet(line):
    pass


def square_samples(images, masks, source):
    """Samples of images that fill the square, each a group of its own."""
    inner = np.full((len(images), 2), images.shape[1], np.int64)
    return SamSamples(images, inner, masks, source, [str(n) for n in range(len(images))])


def phantoms(count, side, first=0):
    drawn = [make_phantom(seed, size=(side, side)) for seed in range(first, first + count)]
    pairs = [(n, m) for n, d in enumerate(drawn) for m in d.masks.values() if m.any()]
    images = np.stack([(d.pixels * 255 + 0.5).astype(np.uint8) for d in drawn])
    return square_samples(images, np.stack([m for _, m in pairs]), np.array([n for n, _ in pairs]))


def tiny_sam(seed=3):
    torch.manual_seed(seed)
    return build_sam(TINY)


def weights(sam):
    return {name: tensor.clone() for name, tensor in sam.state_dict().items()}


def changed(sam, before):
    return {name for name, tensor in sam.state_dict().items() if not tensor.equal(before[name])}


def padded_samples():
    """Colour images of several shapes, two masks each."""
    rng = np.random.default_rng(0)
    images, inner, masks = [], [], []
    for shape in [(50, 80), (100, 40), (64, 64), (31, 200)]:
        images.append(prepare_image(rng.integers(0, 256, (*shape, 3), np.uint8), TINY))
        inner.append(inner_size(shape, TINY))
        for part in (0.2, 0.6):
            mask = np.zeros(shape, bool)
            top, left = int(part * shape[0]), int(part * shape[1])
            mask[top : top + shape[0] // 3, left : left + shape[1] // 3] = True
            masks.append(fit_mask(mask, inner[-1], 64))
    source = np.arange(8) // 2
    groups = [str(n) for n in range(4)]
    return SamSamples(np.stack(images), np.array(inner), np.stack(masks), source, groups)
