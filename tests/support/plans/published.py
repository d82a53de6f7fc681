"""Bundles with published plans, the graphs opened of them, and what these must compute."""

import numpy as np
import torch
from tensorrt_graphs import (
    WIDTH,
    features_reference,
    sam_decoder_reference,
    sam_encoder_reference,
    score_reference,
    text_reference,
)

from medclipsam.engine.backends import tensorrt
from medclipsam.engine.config import make_config
from medclipsam.export.tensorrt import export_tensorrt

CPU = torch.device("cpu")
SETTINGS = {"saliency": {"rows": 3}, "segment": {"batch": 2, "boxes": 5}}
ROUNDING = 1e-4  # of float32 sums in another order


def publish(bundle, precision="fp32", device=CPU):
    """``bundle`` with plans in the cache that it names."""
    judged = []
    (bundle.folder / "bundle.json").write_text("{}")
    config = make_config(SETTINGS, {"precision": precision})
    export_tensorrt(bundle, config, device, lambda staged: judged.append(staged) or {})
    return judged[0]


def open_graph(bundle, name="score", batch=3, **settings):
    return tensorrt.open_graph(bundle, name, CPU, batch, **settings)


def noise(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, np.float32))


def assert_close(found, expected):
    for one, other in zip(
        *(x if isinstance(x, tuple) else (x,) for x in (found, expected)), strict=True
    ):
        assert one.shape == other.shape and one.dtype == other.dtype
        assert not other.numel() or (one - other).abs().max() <= ROUNDING * other.abs().max()


def inputs(bundle, name, texts=3):
    side, sam = bundle.clip.image_size, bundle.sam_config
    cells = sam.image_size // sam.patch_size
    return {
        "text": (torch.arange(8).reshape(2, 4),),
        "features": (noise(1, 3, side, side), noise(texts, WIDTH, seed=1)),
        "score": (noise(3, 3, side, side),),
        "sam_encoder": (noise(2, 3, sam.image_size, sam.image_size),),
        "sam_decoder": (noise(5, sam.channels, cells, cells), noise(5, 4, seed=1)),
    }[name]


CASES = {
    "text": (1, text_reference),
    "features": (1, features_reference),
    "score": (3, score_reference),
    "sam_encoder": (2, sam_encoder_reference),
    "sam_decoder": (5, sam_decoder_reference),
}
