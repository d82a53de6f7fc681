"""What is exported: each graph of a bundle as a module, example inputs, names and free dimensions.

    text          tokens (T, L)                        → embeddings (T, D)
    features      pixels (B, 3, S, S), texts (P, D)    → embedding, activation, importance
    score         pixels (R, 3, S, S)                  → embeddings (R, D)
    sam_encoder   pixels (B, 3, S, S)                  → embedding (B, C, g, g)
    sam_decoder   embeddings (K, C, g, g), boxes (K, 4) → logits (K, 4g, 4g), iou (K,)

The arithmetic is that of ``medclipsam.engine.backends.pytorch`` and, beside it, ``samencoder``;
inputs and outputs are float32 whatever is between them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medclipsam.engine.backends.lastblock import require_plain_vit
from medclipsam.engine.backends.pytorch import (
    decode_boxes,
    embed_rows,
    embed_text,
    last_features,
)
from medclipsam.engine.backends.samencoder import encode_image
from medclipsam.engine.weights.bundle import Bundle

EXAMPLES = 2  # rows; with one row the exporter takes the batch for a constant
WORDS = 7


class Graph(nn.Module):
    """A function of a model as a module, so that its parts keep their names."""

    def __init__(self, model: nn.Module, run: Callable[..., Any]):
        super().__init__()
        self.model, self._run = model, run

    def forward(self, *inputs: Tensor) -> Any:
        return self._run(self.model, *inputs)


@dataclass(frozen=True)
class Spec:
    """One graph, ready for an exporter.

    Attributes:
        module: takes ``examples``.
        examples: example inputs, ``EXAMPLES`` rows of everything that is free.
        inputs, outputs: names.
        free: per input, dimension → its name.
        island: module from which on everything stays float32, or "" where all of it does.
    """

    name: str
    module: nn.Module
    examples: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    free: tuple[dict[int, str], ...]
    island: str = ""


def make_spec(bundle: Bundle, name: str) -> Spec:
    """The graph ``name`` of ``bundle``.

    Raises:
        BackendError: an image tower whose closed forms are not written.
    """
    if name.startswith("sam_"):
        return _sam_spec(bundle, name)
    clip: Any = bundle.clip.model
    clip.eval().requires_grad_(False)
    if name == "text":
        tokens = torch.arange(4, 4 + EXAMPLES * WORDS).reshape(EXAMPLES, WORDS)
        free: tuple[dict[int, str], ...] = ({0: "T", 1: "L"},)
        return Spec(name, Graph(clip, embed_text), (tokens,), ("tokens",), ("embeddings",), free)
    require_plain_vit(clip)
    side = bundle.clip.image_size
    pixels = torch.zeros(EXAMPLES, 3, side, side)
    if name == "score":
        return Spec(
            name, Graph(clip, embed_rows), (pixels,), ("pixels",), ("embeddings",), ({0: "R"},),
            island="model.visual.trunk.norm",
        )  # fmt: skip
    width = embed_rows(clip, pixels[:1]).shape[1]
    return Spec(
        name,
        Graph(clip, last_features),
        (pixels, F.normalize(torch.ones(EXAMPLES + 1, width), dim=1)),
        ("pixels", "texts"),
        ("embedding", "activation", "importance"),
        ({0: "B"}, {0: "P"}),
        island=f"model.visual.trunk.blocks.{len(clip.visual.trunk.blocks) - 1}.norm1",
    )


def _sam_spec(bundle: Bundle, name: str) -> Spec:
    config, sam = bundle.sam_config, bundle.sam
    sam.eval().requires_grad_(False)
    side, cells = config.image_size, config.image_size // config.patch_size
    if name == "sam_encoder":
        pixels = torch.zeros(EXAMPLES, 3, side, side)
        return Spec(
            name, Graph(sam, encode_image), (pixels,), ("pixels",), ("embedding",), ({0: "B"},),
            island="model.image_encoder.neck",
        )  # fmt: skip
    boxes = torch.tensor([[0.1, 0.2, 0.7, 0.9]]).repeat(EXAMPLES, 1) * side
    return Spec(
        name,
        Graph(sam, decode_boxes),
        (torch.zeros(EXAMPLES, config.channels, cells, cells), boxes),
        ("embeddings", "boxes"),
        ("logits", "iou"),
        ({0: "K"}, {0: "K"}),
    )
