"""The last block of a ViT as CLS pooling sees it: forwards for one token, and its gradient.

CLS pooling reads one token of the last block. So forwards, only keys and values need all
tokens; query, projection and MLP need CLS alone. And the gradient of a logit at the
block's first norm is a closed form: one attention row, one MLP, two norms and two
projections, written here as plain operations, so it needs no graph and can be exported.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medclipsam.engine.errors import BackendError


@dataclass(frozen=True)
class ClsPath:
    """What the way of the CLS token through the last block leaves behind.

    Attributes:
        row: (B, h, N) attention of CLS to every token.
        query: (B, h, d); values: (B, h, N, d).
        attended: (B, C) CLS after attention and its residual.
        output: (B, C) CLS after the block.
    """

    row: Tensor
    query: Tensor
    values: Tensor
    attended: Tensor
    output: Tensor


def cls_output(block: Any, tokens: Tensor) -> Tensor:
    """(B, N, C) tokens before the last block → (B, C) CLS after it."""
    return cls_path(block, tokens, block.norm1(tokens)).output


def cls_path(block: Any, tokens: Tensor, normed: Tensor) -> ClsPath:
    """The CLS token through a pre-norm block.

    Args:
        block: timm's ``Block``.
        tokens: (B, N, C) before the block.
        normed: (B, N, C), ``block.norm1(tokens)``.
    """
    attention = block.attn
    heads, width = attention.num_heads, attention.head_dim
    inner = heads * width
    weight, bias = attention.qkv.weight, attention.qkv.bias
    query = F.linear(normed[:, 0], weight[:inner], None if bias is None else bias[:inner])
    others = F.linear(normed, weight[inner:], None if bias is None else bias[inner:])
    query = query.unflatten(-1, (heads, width))
    keys, values = others.unflatten(-1, (2, heads, width)).permute(2, 0, 3, 1, 4)
    scores = (attention.scale * query[:, :, None]) @ keys.transpose(-2, -1)
    row = scores.softmax(-1)
    mixed = (row @ values).flatten(1)
    attended = tokens[:, 0] + block.ls1(attention.proj(mixed))
    output = attended + block.ls2(block.mlp(block.norm2(attended)))
    return ClsPath(row[:, :, 0], query, values, attended, output)


def mean_patch_gradient(clip: Any, path: ClsPath, texts: Tensor) -> Tensor:
    """Mean over patches of ∂ logit_p / ∂ norm1 of the last block.

    gScoreCAM's channel importance (Chen et al., ACCV 2022, eq. 3) without autograd. With
    a the attention row of CLS, g its output's gradient and q its query, patch j receives
    W_vᵀ a_j g and W_kᵀ a_j (g·v_j − Σ_i a_i g·v_i) q/√d, per head; their mean over patches
    needs two sums per head.

    Args:
        clip: open_clip model with a timm ViT as its trunk.
        path: what ``cls_path`` found.
        texts: (P, D) unit text embeddings.

    Returns:
        (B, P, C).
    """
    trunk = clip.visual.trunk
    block, prefix = trunk.blocks[-1], trunk.num_prefix_tokens
    attention = block.attn
    inner = attention.num_heads * attention.head_dim
    mixed = _gradient_before_projection(clip, path, texts)
    mixed = mixed.unflatten(-1, (attention.num_heads, attention.head_dim))
    gains = torch.einsum("bphd,bhnd->bphn", mixed, path.values)
    row = path.row[:, None]
    centred = row * (gains - (row * gains).sum(-1, keepdim=True))
    on_keys = centred[..., prefix:].sum(-1, keepdim=True) * attention.scale * path.query[:, None]
    on_values = row[..., prefix:].sum(-1, keepdim=True) * mixed
    weight = attention.qkv.weight
    total = (
        on_keys.flatten(2) @ weight[inner : 2 * inner] + on_values.flatten(2) @ weight[2 * inner :]
    )
    return total / (path.row.shape[-1] - prefix)


def _gradient_before_projection(clip: Any, path: ClsPath, texts: Tensor) -> Tensor:
    """∂ logit_p / ∂ the heads' outputs for CLS, before the attention's projection: (B, P, C)."""
    trunk = clip.visual.trunk
    block = trunk.blocks[-1]
    embedding = clip.visual.head(trunk.norm(path.output))
    length = embedding.norm(dim=-1, keepdim=True)
    unit = embedding / length
    cosine = unit @ texts.T
    towards = (texts - cosine[..., None] * unit[:, None]) / length[:, None]
    towards = clip.logit_scale.exp() * towards @ _projection(clip.visual.head).weight
    towards = _through_norm(trunk.norm, path.output, towards)
    hidden = block.mlp.fc1(block.norm2(path.attended))
    inside = _scaled(block.ls2, towards) @ block.mlp.fc2.weight
    inside = (inside * _gelu_slope(hidden)[:, None]) @ block.mlp.fc1.weight
    towards = towards + _through_norm(block.norm2, path.attended, inside)
    return _scaled(block.ls1, towards) @ block.attn.proj.weight


def _through_norm(norm: nn.LayerNorm, inputs: Tensor, gradient: Tensor) -> Tensor:
    """Gradient (B, P, C) behind a layer norm of ``inputs`` (B, C) → before it."""
    centred = inputs - inputs.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    unit = (centred / deviation)[:, None]
    scaled = gradient * norm.weight
    along = (scaled * unit).mean(-1, keepdim=True)
    return (scaled - scaled.mean(-1, keepdim=True) - unit * along) / deviation[:, None]


def _gelu_slope(x: Tensor) -> Tensor:
    """d/dx of x·Φ(x)."""
    density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * density


def _scaled(layer_scale: Any, gradient: Tensor) -> Tensor:
    """Through timm's ``LayerScale``, or the identity in its place."""
    return gradient * getattr(layer_scale, "gamma", 1.0)


def _projection(head: nn.Module) -> nn.Linear:
    return next(part for part in head.modules() if isinstance(part, nn.Linear))


def require_plain_vit(clip: Any) -> None:
    """Refuse image towers whose last block is another than the formulas above hold for.

    Raises:
        BackendError: names what differs.
    """
    trunk = clip.visual.trunk
    block = trunk.blocks[-1]
    attention, mlp = block.attn, block.mlp
    identities = {
        "query norm": attention.q_norm,
        "key norm": attention.k_norm,
        "attention norm": getattr(attention, "norm", nn.Identity()),
        "MLP norm": getattr(mlp, "norm", nn.Identity()),
        "norm after pooling": trunk.fc_norm,
    }
    wrong = [name for name, part in identities.items() if not isinstance(part, nn.Identity)]
    if getattr(attention, "gate", None) is not None:
        wrong.append("gated attention")
    if not isinstance(mlp.act, nn.GELU) or mlp.act.approximate != "none":
        wrong.append(f"activation {mlp.act}")
    parts = [part for part in clip.visual.head.modules() if not list(part.children())]
    linear = [part for part in parts if isinstance(part, nn.Linear)]
    if len(linear) != 1 or any(
        not isinstance(p, (nn.Linear, nn.Dropout, nn.Identity)) for p in parts
    ):
        wrong.append("projection head that is not one linear layer")
    if trunk.global_pool != "token":
        wrong.append(f"pooling {trunk.global_pool!r}")
    if wrong:
        raise BackendError(
            f"this image tower has {', '.join(wrong)}; saliency is written for pre-norm ViTs "
            "with GELU, CLS pooling and a linear projection, such as BiomedCLIP's"
        )
