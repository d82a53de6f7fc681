"""The graphs in plain PyTorch, on CPU or CUDA; lower precisions by autocast."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medclipsam.engine.backends.arithmetic import DTYPES, Autocast, make_autocast
from medclipsam.engine.backends.lanes import PARTS, Lanes
from medclipsam.engine.backends.lastblock import (
    cls_output,
    cls_path,
    mean_patch_gradient,
    require_plain_vit,
)
from medclipsam.engine.backends.placement import place
from medclipsam.engine.backends.samencoder import encode_image
from medclipsam.engine.errors import BackendError, ConfigError
from medclipsam.engine.weights.bundle import Bundle

TARGETS = ("norm1", "norm2")


def open_graph(
    bundle: Bundle, name: str, device: torch.device, precision: str = "fp32", **settings: Any
) -> Callable[..., Any]:
    """See ``medclipsam.engine.backends.open_graph``.

    Raises:
        BackendError: an unknown graph.
    """
    if name not in _GRAPHS:
        raise BackendError(f"unknown graph {name!r}; choose from {', '.join(_GRAPHS)}")
    model = bundle.sam if name.startswith("sam_") else bundle.clip.model
    if name in ("features", "score", "lower", "upper"):
        require_plain_vit(model)
    lowered, dtype = [], DTYPES.get(precision, torch.float32)
    if name in _LOWERABLE:
        settings["autocast"] = make_autocast(device, precision)
        lowered = _LOWERABLE[name](model, **settings)
    run = partial(_GRAPHS[name], place(model, device, lowered, dtype))
    if device.type == "cpu" and name in PARTS:
        return Lanes(partial(run, **settings), PARTS[name], torch.get_num_threads())
    return partial(run, **settings)


def embed_text(clip: Any, tokens: Tensor) -> Tensor:
    """``text``."""
    on_cpu = tokens.device.type == "cpu"
    encoded = clip.encode_text(tokens) if on_cpu else encode_unread(clip.text, tokens)
    return F.normalize(encoded.float(), dim=-1)


def encode_unread(text: Any, tokens: Tensor) -> Tensor:
    """open_clip's ``HFTextEncoder.forward``: (T, L) token ids → (T, D).

    transformers reads a mask of (T, L) to see whether it masks anything, and waits for all that
    the device has to do before. One of (T, 1, L, L) it takes as it is.
    """
    shown = tokens != text.config.pad_token_id
    mask = shown[:, None, None].expand(-1, 1, tokens.shape[1], -1)
    found = text.transformer(input_ids=tokens, attention_mask=mask)
    return text.proj(text.pooler(found, shown.long()))


def embed_rows(clip: Any, pixels: Tensor, autocast: Autocast = nullcontext) -> Tensor:
    """``score``."""
    trunk = clip.visual.trunk
    with autocast():
        tokens = _tokens(trunk, pixels, len(trunk.blocks) - 1)
        token = cls_output(trunk.blocks[-1], tokens)
    return _embed(clip, token.float())


def _tokens(trunk: Any, pixels: Tensor, blocks: int) -> Tensor:
    """(B, N, C) tokens after the first ``blocks`` blocks."""
    tokens = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(pixels))))
    for block in trunk.blocks[:blocks]:
        tokens = block(tokens)
    return tokens


@torch.no_grad()
def _lower(clip: Any, pixels: Tensor, blocks: int, autocast: Autocast) -> Tensor:
    with autocast():
        return _tokens(clip.visual.trunk, pixels, blocks).float()


def _upper(clip: Any, tokens: Tensor, blocks: int) -> Tensor:
    """Open to autograd, for methods that differentiate through the upper blocks."""
    trunk = clip.visual.trunk
    for block in trunk.blocks[blocks:-1]:
        tokens = block(tokens)
    return _embed(clip, cls_output(trunk.blocks[-1], tokens))


def _embed(clip: Any, token: Tensor) -> Tensor:
    """(B, C) CLS after the last block → float32 (B, D) unit rows."""
    trunk = clip.visual.trunk
    head = clip.visual.head(trunk.head_drop(trunk.fc_norm(trunk.norm(token))))
    return F.normalize(head.float(), dim=-1)


def _features(
    clip: Any,
    pixels: Tensor,
    texts: Tensor,
    autocast: Autocast,
    target: str = "norm1",
    block: int = -1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Embedding, activation at ``blocks[block].target`` and the mean gradient of each
    logit there (gScoreCAM's channel importance; Chen et al., ACCV 2022, eq. 3)."""
    if target not in TARGETS:
        raise ConfigError(f"unknown target layer {target!r}; choose from {', '.join(TARGETS)}")
    index = _block_index(clip, block)
    if target == "norm1" and index == len(clip.visual.trunk.blocks) - 1:
        with torch.inference_mode():
            return last_features(clip, pixels, texts, autocast)
    return _differentiated_features(clip, pixels, texts, target, index, autocast)


def _block_index(clip: Any, block: int) -> int:
    depth = len(clip.visual.trunk.blocks)
    if not -depth <= block < depth:
        raise ConfigError(f"saliency.block is {block}, but this image tower has {depth} blocks")
    return block % depth


def last_features(
    clip: Any, pixels: Tensor, texts: Tensor, autocast: Autocast = nullcontext
) -> tuple[Tensor, Tensor, Tensor]:
    """``features`` at the first norm of the last block, where the gradient is a closed form."""
    trunk = clip.visual.trunk
    last = trunk.blocks[-1]
    with autocast():
        tokens = _tokens(trunk, pixels, len(trunk.blocks) - 1).float()
    normed = last.norm1(tokens)
    path = cls_path(last, tokens, normed)
    maps = _as_maps(normed[:, trunk.num_prefix_tokens :])
    return _embed(clip, path.output), maps, mean_patch_gradient(clip, path, texts)


def _as_maps(patches: Tensor) -> Tensor:
    """(B, g², C) → float32 (B, C, g, g)."""
    side = round(patches.shape[1] ** 0.5)
    return patches.float().transpose(1, 2).unflatten(2, (side, side))


def _differentiated_features(
    clip: Any, pixels: Tensor, texts: Tensor, target: str, index: int, autocast: Autocast
) -> tuple[Tensor, Tensor, Tensor]:
    """Anywhere else, by autograd through the blocks from the target on."""
    trunk = clip.visual.trunk
    with torch.no_grad(), autocast():
        tokens = _tokens(trunk, pixels, index).float()
    with torch.enable_grad():
        activation, tokens = _open_block(trunk.blocks[index], tokens, target)
        for later in trunk.blocks[index + 1 :]:
            tokens = later(tokens)
        embedding = _embed(clip, tokens[:, 0])
        logits = clip.logit_scale.exp() * embedding @ texts.T
        prefix = trunk.num_prefix_tokens
        gradients = [
            torch.autograd.grad(logits[:, p].sum(), activation, retain_graph=True)[0]
            for p in range(texts.shape[0])
        ]
    importance = [gradient[:, prefix:].mean(1) for gradient in gradients]
    maps = _as_maps(activation.detach()[:, prefix:])
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
    sparse, dense = _prompt(sam.prompt_encoder, boxes)
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


def _prompt(encoder: Any, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """``PromptEncoder.forward`` for boxes, without writing into tensors: sparse (K, 2, C) and
    dense (1, C, 1, 1) embeddings."""
    side = encoder.input_image_size[0]
    corners = encoder.pe_layer._pe_encoding((boxes + 0.5).unflatten(1, (2, 2)) / side)
    kinds = torch.cat([encoder.point_embeddings[2].weight, encoder.point_embeddings[3].weight])
    return corners + kinds, encoder.no_mask_embed.weight[:, :, None, None]


_GRAPHS: dict[str, Callable[..., Any]] = {
    "text": torch.inference_mode()(embed_text),
    "features": _features,
    "score": torch.inference_mode()(embed_rows),
    "lower": _lower,
    "upper": _upper,
    "sam_encoder": torch.inference_mode()(encode_image),
    "sam_decoder": torch.inference_mode()(decode_boxes),
}


def _lower_blocks(clip: Any, blocks: int) -> list[nn.Module]:
    trunk = clip.visual.trunk
    return [trunk.patch_embed, *trunk.blocks[:blocks]]


_LOWERABLE: dict[str, Callable[..., list[nn.Module]]] = {
    "features": lambda clip, block=-1, **_: _lower_blocks(clip, _block_index(clip, block)),
    "score": lambda clip, **_: _lower_blocks(clip, len(clip.visual.trunk.blocks)),
    "lower": lambda clip, blocks, **_: _lower_blocks(clip, blocks),
    "sam_encoder": lambda sam, **_: [sam.image_encoder.patch_embed, *sam.image_encoder.blocks],
}
"""Graph → the parts of its model that compute in its precision."""
