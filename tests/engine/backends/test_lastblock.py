"""The last block's closed forms against autograd and hooks on the whole open_clip model."""

import copy

import pytest
import torch
from models import pictures
from torch import nn
from torch.nn import functional as F

from medclipsam.engine.backends.lastblock import (
    cls_path,
    mean_patch_gradient,
    require_plain_vit,
)
from medclipsam.engine.backends.pytorch import open_graph
from medclipsam.engine.errors import BackendError
from medclipsam.engine.weights.bundle import open_bundle

DOUBLE, SINGLE = 1e-5, 1e-3  # relative to the largest entry
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def phantom():
    return open_bundle("phantom").clip.model.eval()


def full_size():
    """An image tower of BiomedCLIP's sizes with random weights, biases and scales."""
    import open_clip

    torch.manual_seed(3)
    clip = open_clip.model.CustomTextCLIP(
        embed_dim=512,
        vision_cfg={
            "timm_model_name": "vit_base_patch16_224",
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 224,
        },
        text_cfg={"layers": 1, "width": 64, "heads": 2, "vocab_size": 99},
    ).eval()
    with torch.no_grad():
        for name, parameter in clip.visual.named_parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
            if "qkv" in name:
                parameter.mul_(2)  # attention rows far from uniform
    return clip


def autograd_importance(clip, pixels, texts):
    """Mean over patches of each logit's gradient at the last norm1, and that norm's output."""
    trunk = clip.visual.trunk
    kept = []

    def keep(module, inputs, output):
        output = output.detach().requires_grad_()
        kept.append(output)
        return output

    hook = trunk.blocks[-1].norm1.register_forward_hook(keep)
    unit = F.normalize(clip.visual(pixels), dim=-1)
    hook.remove()
    logits = clip.logit_scale.exp() * unit @ texts.T
    rows = [
        torch.autograd.grad(logits[:, p].sum(), kept[0], retain_graph=True)[0][:, 1:].mean(1)
        for p in range(len(texts))
    ]
    return torch.stack(rows, 1), unit.detach()


def closed_importance(clip, pixels, texts):
    trunk = clip.visual.trunk
    tokens = trunk.norm_pre(trunk._pos_embed(trunk.patch_embed(pixels)))
    for block in trunk.blocks[:-1]:
        tokens = block(tokens)
    path = cls_path(trunk.blocks[-1], tokens, trunk.blocks[-1].norm1(tokens))
    return mean_patch_gradient(clip, path, texts)


def inputs(clip, batch, prompts, dtype):
    size = clip.visual.trunk.patch_embed.img_size[0]
    torch.manual_seed(0)
    width = next(m for m in clip.visual.head.modules() if isinstance(m, nn.Linear)).out_features
    texts = F.normalize(torch.randn(prompts, width, dtype=torch.float64), dim=1)
    return pictures(size, batch, seed=9).to(dtype), texts.to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, DOUBLE), (torch.float32, SINGLE)])
@pytest.mark.parametrize(("batch", "prompts"), [(1, 1), (3, 5)])
def test_importance_equals_autograd(phantom, dtype, tolerance, batch, prompts):
    clip = copy.deepcopy(phantom).to(dtype)
    pixels, texts = inputs(clip, batch, prompts, dtype)
    expected, _ = autograd_importance(clip, pixels, texts)
    with torch.no_grad():
        found = closed_importance(clip, pixels, texts)
    assert found.shape == (batch, prompts, clip.visual.trunk.embed_dim)
    assert expected.abs().max() > 1e-5
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, DOUBLE), (torch.float32, SINGLE)])
def test_importance_equals_autograd_at_full_size(dtype, tolerance):
    clip = full_size().to(dtype)
    pixels, texts = inputs(clip, 1, 3, dtype)
    expected, _ = autograd_importance(clip, pixels, texts)
    with torch.no_grad():
        found = closed_importance(clip, pixels, texts)
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def test_layer_scales_count(phantom):
    clip = copy.deepcopy(phantom).double()
    block, width = clip.visual.trunk.blocks[-1], clip.visual.trunk.embed_dim
    from timm.layers import LayerScale

    for name in ("ls1", "ls2"):
        scale = LayerScale(width).double()
        scale.gamma.data = torch.linspace(0.2, 2, width, dtype=torch.float64)
        setattr(block, name, scale)
    pixels, texts = inputs(clip, 2, 2, torch.float64)
    expected, _ = autograd_importance(clip, pixels, texts)
    with torch.no_grad():
        found = closed_importance(clip, pixels, texts)
    assert (found - expected).abs().max() <= DOUBLE * expected.abs().max()


def test_scores_are_those_of_the_whole_model(tiny_bundle):
    clip = tiny_bundle.clip.model.eval()
    pixels, _ = inputs(clip, 3, 1, torch.float32)
    with torch.no_grad():
        expected = F.normalize(clip.encode_image(pixels), dim=-1)
    found = open_graph(tiny_bundle, "score", CPU)(pixels)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def change(clip, name):
    block = clip.visual.trunk.blocks[-1]
    if name == "query norm":
        block.attn.q_norm = nn.LayerNorm(block.attn.head_dim)
    elif name == "activation":
        block.mlp.act = nn.ReLU()
    elif name == "norm after pooling":
        clip.visual.trunk.fc_norm = nn.LayerNorm(clip.visual.trunk.embed_dim)
    elif name == "pooling":
        clip.visual.trunk.global_pool = "avg"
    elif name == "projection":
        clip.visual.head = nn.Sequential(nn.Linear(96, 8), nn.GELU(), nn.Linear(8, 8))


@pytest.mark.parametrize(
    "name", ["query norm", "activation", "norm after pooling", "pooling", "projection"]
)
def test_other_image_towers_are_refused_by_name(phantom, name):
    clip = copy.deepcopy(phantom)
    require_plain_vit(clip)
    change(clip, name)
    with pytest.raises(BackendError, match=name):
        require_plain_vit(clip)
