"""The graphs in plain PyTorch, on CPU or CUDA, float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medclipsam.engine.bundle import Bundle
from medclipsam.engine.errors import BackendError, ConfigError

TARGETS = ("norm1", "norm2")


def open_graph(
    bundle: Bundle, name: str, device: torch.device, **settings: Any
) -> Callable[..., Any]:
    """See ``medclipsam.engine.backends.open_graph``.

    Raises:
        BackendError: an unknown graph.
    """
    if name not in _GRAPHS:
        raise BackendError(f"unknown graph {name!r}; choose from {', '.join(_GRAPHS)}")
    model = bundle.sam if name.startswith("sam_") else bundle.clip.model
    model = model.to(device).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    run = _GRAPHS[name]
    return lambda *inputs: run(model, *inputs, **settings)


@torch.inference_mode()
def _text(clip: Any, tokens: Tensor) -> Tensor:
    return F.normalize(clip.encode_text(tokens).float(), dim=-1)


@torch.inference_mode()
def _score(clip: Any, pixels: Tensor) -> Tensor:
    return F.normalize(clip.encode_image(pixels).float(), dim=-1)


def _features(
    clip: Any, pixels: Tensor, texts: Tensor, target: str = "norm1", block: int = -1
) -> tuple[Tensor, Tensor, Tensor]:
    """Embedding, activation at ``blocks[block].target`` and the mean gradient of each
    logit there (gScoreCAM's channel importance; Chen et al., ACCV 2022, eq. 3).

    The blocks below the target run without a graph; only what lies above it is
    differentiated.
    """
    if target not in TARGETS:
        raise ConfigError(f"unknown target layer {target!r}; choose from {', '.join(TARGETS)}")
    trunk = clip.visual.trunk
    blocks = list(trunk.blocks)
    index = block % len(blocks)
    with torch.no_grad():
        tokens = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(pixels))))
        for earlier in blocks[:index]:
            tokens = earlier(tokens)
    with torch.enable_grad():
        activation, tokens = _open_block(blocks[index], tokens, target)
        for later in blocks[index + 1 :]:
            tokens = later(tokens)
        embedding = clip.visual.head(trunk.forward_head(trunk.norm(tokens)))
        embedding = F.normalize(embedding.float(), dim=-1)
        logits = clip.logit_scale.exp() * embedding @ texts.T
        prefix = trunk.num_prefix_tokens
        gradients = [
            torch.autograd.grad(logits[:, p].sum(), activation, retain_graph=True)[0]
            for p in range(texts.shape[0])
        ]
    importance = [gradient[:, prefix:].mean(1) for gradient in gradients]
    patches = activation.detach()[:, prefix:].float()
    side = round(patches.shape[1] ** 0.5)
    maps = patches.transpose(1, 2).reshape(patches.shape[0], -1, side, side)
    if not importance:
        return embedding.detach(), maps, maps.new_empty(len(maps), 0, maps.shape[1])
    return embedding.detach(), maps, torch.stack(importance, 1)


def _open_block(block: Any, tokens: Tensor, target: str) -> tuple[Tensor, Tensor]:
    """Run one pre-norm block with a differentiable leaf at one of its norms."""
    if target == "norm1":
        activation = block.norm1(tokens).requires_grad_()
        tokens = tokens + block.drop_path1(block.ls1(block.attn(activation)))
        normed = block.norm2(tokens)
    else:
        tokens = tokens + block.drop_path1(block.ls1(block.attn(block.norm1(tokens))))
        activation = normed = block.norm2(tokens).requires_grad_()
    return activation, tokens + block.drop_path2(block.ls2(block.mlp(normed)))


@torch.inference_mode()
def _sam_encoder(sam: Any, pixels: Tensor) -> Tensor:
    return sam.image_encoder(pixels)


@torch.inference_mode()
def _sam_decoder(sam: Any, embeddings: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    return decode_boxes(sam, embeddings, boxes)


def decode_boxes(sam: Any, embeddings: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """One row per box: row k decodes ``boxes[k]`` on ``embeddings[k]``.

    ``MaskDecoder.predict_masks`` repeats every image for every box (B² rows); here the
    caller has gathered the embedding of each box's image, and the same sub-modules run
    once over K rows.

    Args:
        sam: ``segment_anything.modeling.Sam``.
        embeddings: (K, C, g, g).
        boxes: float (K, 4) XYXY in pixels of the model's input.

    Returns:
        Low-resolution logits (K, 4g, 4g) of the single-mask output, predicted IoU (K,).
    """
    decoder = sam.mask_decoder
    sparse, dense = sam.prompt_encoder(points=None, boxes=boxes, masks=None)
    output = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output.expand(len(boxes), -1, -1), sparse], 1)
    source = embeddings + dense
    position = sam.prompt_encoder.get_dense_pe().expand_as(source)
    states, source = decoder.transformer(source, position, tokens)
    grid = source.transpose(1, 2).reshape(embeddings.shape)
    upscaled = decoder.output_upscaling(grid)
    weights = decoder.output_hypernetworks_mlps[0](states[:, 1])
    logits = torch.einsum("kc,kchw->khw", weights, upscaled)
    return logits, decoder.iou_prediction_head(states[:, 0])[:, 0]


_GRAPHS: dict[str, Callable[..., Any]] = {
    "text": _text,
    "features": _features,
    "score": _score,
    "sam_encoder": _sam_encoder,
    "sam_decoder": _sam_decoder,
}
