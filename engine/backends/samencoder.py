"""SAM's image encoder on the weights of ``segment_anything``'s modules, with fused attention.

``segment_anything`` writes scores, positions and probabilities of all heads, each N × N, to
memory. Here they live inside ``scaled_dot_product_attention``. Its mask are the relative
positions, which are made for a part of the scores at a time. Windows that stand over the edge are
filled with padding for attention only, not for the linear layers.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# numbers in a part of a mask
BIAS = 1 << 22  # on a CPU: 16 MiB, which malloc gives again without a page fault
DEVICE_BIAS = 1 << 26  # elsewhere: enough to keep a device busy, and little beside its memory


def encode_block(block: Any, tokens: Tensor) -> Tensor:
    """``segment_anything``'s ``Block.forward``: (B, H, W, C) → the same."""
    tokens = tokens + _self_attention(block.attn, block.norm1(tokens), block.window_size)
    return tokens + block.mlp(block.norm2(tokens))


def encode_image(
    sam: Any,
    pixels: Tensor,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    run_block: Callable[[Any, Tensor], Tensor] = encode_block,
) -> Tensor:
    """``sam_encoder``, as ``ImageEncoderViT.forward``; the neck's norms square their input and
    stay float32.

    Args:
        sam: ``segment_anything.modeling.Sam``.
        pixels: float (B, 3, S, S), normalised.
        run_block: how a block is run; training wraps ``encode_block``.

    Returns:
        float32 (B, C, g, g).
    """
    encoder = sam.image_encoder
    with autocast():
        tokens = encoder.patch_embed(pixels)
        if encoder.pos_embed is not None:
            tokens = tokens + encoder.pos_embed
        for block in encoder.blocks:
            tokens = run_block(block, tokens)
    return encoder.neck(tokens.float().permute(0, 3, 1, 2))


def _self_attention(attention: Any, tokens: Tensor, window: int) -> Tensor:
    """Attention of (B, H, W, C) over the whole grid, or in windows if ``window`` is not 0."""
    height, width = tokens.shape[1:3]
    flat = tokens.flatten(1, 2)
    if not window:
        mixed = _attend(attention, attention.qkv(flat), (height, width))
    else:
        into, back = _window_order(height, width, window, tokens.device)
        # padding enters attention as a token of zeros: one stands for all
        packed = attention.qkv(F.pad(flat, (0, 0, 0, 1))).index_select(1, into)
        windows = packed.unflatten(1, (-1, window * window)).flatten(0, 1)
        mixed = _attend(attention, windows, (window, window))
        mixed = mixed.unflatten(0, (-1, len(into) // window**2)).flatten(1, 2)
        mixed = mixed.index_select(1, back)
    return attention.proj(mixed).unflatten(1, (height, width))


def _window_order(
    height: int, width: int, window: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Which token stands where in the windows, H · W for padding, and the place of every token."""
    down, right = -height % window, -width % window
    grid = torch.arange(height * width, device=device).view(height, width)
    grid = F.pad(grid, (0, right, 0, down), value=height * width)
    rows, columns = (height + down) // window, (width + right) // window
    into = grid.view(rows, window, columns, window).transpose(1, 2).flatten()
    places = torch.arange(len(into), device=device).view(rows, columns, window, window)
    back = places.transpose(1, 2).reshape(rows * window, columns * window)
    return into, back[:height, :width].flatten()


def _attend(attention: Any, qkv: Tensor, grid: tuple[int, int]) -> Tensor:
    """Multi-head attention between the cells of a grid (h, w): (B, h · w, 3C) → (B, h · w, C)."""
    parts = qkv.unflatten(2, (3, attention.num_heads, -1)).unbind(2)
    query, key, value = (part.transpose(1, 2) for part in parts)  # (B, heads, h · w, d)
    if attention.use_rel_pos:
        mixed = _attend_with_positions(attention, query, key, value, grid)
    else:
        mixed = F.scaled_dot_product_attention(query, key, value)
    return mixed.transpose(1, 2).flatten(2)


def _attend_with_positions(
    attention: Any, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]
) -> Tensor:
    """The scores of query and key get ``high`` of both rows and ``wide`` of both columns.

    Large masks are made and used in parts: never N × N of all heads. On a CPU, a part is of one
    head. An exported graph stays whole, since its runtime plans its memory itself. No mask at
    all, but queries and keys lengthened by positions and one-hot cells, took the CPU's kernel
    1.6 times as long over 64 × 64 cells: it wants values as wide.
    """
    high, wide = _positions(attention, query, grid)
    batch, heads, count = query.shape[:3]
    on_cpu, row = query.device.type == "cpu", count * grid[1]
    if torch.compiler.is_exporting() or (on_cpu and heads * count**2 <= BIAS):
        return F.scaled_dot_product_attention(query, key, value, _mask(high, wide))
    if not on_cpu:
        most = DEVICE_BIAS // (batch * heads * row)
        return _attend_in_parts(query, key, value, high, wide, most)
    mixed = []
    for n in range(heads):
        one = slice(n, n + 1)
        parts = query[:, one], key[:, one], value[:, one], high[:, one], wide[:, one]
        mixed.append(_attend_in_parts(*parts, BIAS // row))
    return torch.cat(mixed, 1)


def _attend_in_parts(
    query: Tensor, key: Tensor, value: Tensor, high: Tensor, wide: Tensor, most: int
) -> Tensor:
    """Attention of the queries in at most ``most`` rows of the grid at a time."""
    rows = max(1, most)
    queries = query.split(rows * wide.shape[3], 2)
    masks = zip(high.split(rows, 2), wide.split(rows, 2), strict=True)
    found = [
        F.scaled_dot_product_attention(some, key, value, _mask(*mask))
        for some, mask in zip(queries, masks, strict=True)
    ]
    return torch.cat(found, 2) if len(found) > 1 else found[0]


def _positions(attention: Any, query: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """``add_decomposed_rel_pos`` before its addition, as products: ONNX's Einsum takes no bf16.

    Returns:
        (B, heads, h, w, h) and (B, heads, h, w, w): what each cell's query adds to its scores with
        each row and with each column.
    """
    height, width = grid
    cells = query.unflatten(2, grid)
    high = cells @ _table(attention.rel_pos_h, height).mT
    wide = cells.transpose(2, 3) @ _table(attention.rel_pos_w, width).mT
    return high, wide.transpose(2, 3).contiguous()


def _table(positions: Tensor, size: int) -> Tensor:
    """``get_rel_pos`` of a grid as long as its queries: (2 · size − 1, d) → (size, size, d), by
    indices that are made where the positions lie."""
    if len(positions) != 2 * size - 1:  # trained on a grid of another size
        positions = F.interpolate(positions.T[None], 2 * size - 1, mode="linear")[0].T
    place = torch.arange(size, device=positions.device)
    return positions[place[:, None] - place + (size - 1)]


def _mask(high: Tensor, wide: Tensor) -> Tensor:
    """Sums of both for some rows of queries and all keys: (B, heads, rows · w, h · w)."""
    return (high[..., None] + wide[..., None, :]).flatten(4).flatten(2, 3)
