"""The encoder against ``segment_anything``'s own ``ImageEncoderViT.forward``."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from torch import nn

from medclipsam.engine.backends import open_graph, samencoder
from medclipsam.engine.backends.samencoder import encode_image
from medclipsam.engine.weights.bundle import open_bundle

SAME = 1e-5  # float32 sums in another order; embeddings have a deviation of about 1
LOW = 1.2  # a low precision may be off by so much more than segment_anything's own in it
CPU = torch.device("cpu")

SIZES = {
    "windows that divide the grid": {"window_size": 4, "global_attn_indexes": (1,)},
    "windows over the edge": {"window_size": 5, "global_attn_indexes": (0, 2)},
    "one window, larger than the grid": {"window_size": 11},
    "windows of one cell": {"window_size": 1},
    "global only": {"window_size": 0},
    "no relative positions": {"window_size": 5, "global_attn_indexes": (1,), "use_rel_pos": False},
    "no absolute positions": {"window_size": 3, "use_abs_pos": False},
    "no bias of queries, keys and values": {"window_size": 5, "qkv_bias": False},
    "one head": {"window_size": 5, "num_heads": 1, "global_attn_indexes": (2,)},
    "six heads": {"window_size": 5, "num_heads": 6, "global_attn_indexes": (2,)},
}


def random_encoder(**sizes):
    """A small one whose every parameter is random, those that start at zero, too."""
    torch.manual_seed(0)
    settings = {
        "img_size": 64, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3,
        "out_chans": 16, "use_rel_pos": True, "norm_layer": partial(nn.LayerNorm, eps=1e-6),
    }  # fmt: skip
    encoder = ImageEncoderViT(**settings | sizes).eval().requires_grad_(False)
    for name, parameter in encoder.named_parameters():
        if "rel_pos" in name or "pos_embed" in name or name.endswith("bias"):
            nn.init.normal_(parameter, std=0.5)
    return encoder


def images(encoder, count=2):
    return torch.randn(count, 3, encoder.img_size, encoder.img_size)


def encoded(encoder, pixels, **settings):
    return encode_image(SimpleNamespace(image_encoder=encoder), pixels, **settings)


def assert_same(encoder, pixels):
    found, expected = encoded(encoder, pixels), encoder(pixels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=SAME, rtol=0)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_it_gives_what_segment_anything_gives(sizes):
    encoder = random_encoder(**sizes)
    assert_same(encoder, images(encoder))


def test_every_ingredient_tells():
    """Else the test above could not see that it is missing."""
    encoder = random_encoder(window_size=5, global_attn_indexes=(1,))
    pixels = images(encoder)
    whole = encoded(encoder, pixels)
    for block in encoder.blocks:
        for name in ("rel_pos_h", "rel_pos_w"):
            table = getattr(block.attn, name)
            kept = table.clone()
            assert (encoded(encoder, pixels) - whole).abs().max() == 0
            table.zero_()
            assert (encoded(encoder, pixels) - whole).abs().max() > 100 * SAME
            table.copy_(kept)


@pytest.mark.parametrize("bias", [1, 8 * 8 * 8, 3 * 8 * 8 * 8, 2 * 8 * 8 * 8 * 8])
def test_masks_in_parts_change_nothing(bias, monkeypatch):
    """Parts of one row, of three rows with two left over, and of whole heads."""
    encoder = random_encoder(window_size=5, global_attn_indexes=(1,))
    monkeypatch.setattr(samencoder, "BIAS", bias)
    assert_same(encoder, images(encoder))


def test_a_mask_is_never_larger_than_its_bound(monkeypatch):
    encoder = random_encoder(window_size=4, global_attn_indexes=(1,))
    seen, real = [], samencoder._mask

    def mask(high, wide):
        seen.append(real(high, wide))
        return seen[-1]

    monkeypatch.setattr(samencoder, "BIAS", 3 * 4**4)  # of a window, all heads
    monkeypatch.setattr(samencoder, "_mask", mask)
    encoded(encoder, images(encoder, 1))
    assert {m[0].numel() for m in seen[1:-1]} == {8 * 64}  # a row of a head: two are too many
    assert seen[0][0].numel() == seen[-1][0].numel() == 3 * 4**4


@pytest.mark.parametrize("length", [3, 9, 40])
def test_tables_of_another_length_are_interpolated(length):
    """As SAMs have them that were trained at another size."""
    encoder = random_encoder(window_size=5, global_attn_indexes=(1,))
    for block in encoder.blocks:
        for name in ("rel_pos_h", "rel_pos_w"):
            table = nn.Parameter(torch.randn(length, 16) / 2, requires_grad=False)
            setattr(block.attn, name, table)
    assert_same(encoder, images(encoder))


def test_a_grid_need_not_be_square():
    encoder = random_encoder(use_abs_pos=False, window_size=5, global_attn_indexes=(1,))
    assert_same(encoder, torch.randn(2, 3, 40, 96))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_as_close_as_segment_anything_in_it(dtype):
    encoder = random_encoder(window_size=5, global_attn_indexes=(1,))
    pixels = images(encoder)
    autocast = partial(torch.autocast, "cpu", dtype)
    expected = encoder(pixels)
    found = encoded(encoder, pixels, autocast=autocast)
    with autocast():
        tokens = encoder.patch_embed(pixels) + encoder.pos_embed
        for block in encoder.blocks:
            tokens = block(tokens)
    theirs = encoder.neck(tokens.float().permute(0, 3, 1, 2))
    assert found.dtype == torch.float32
    assert (found - expected).abs().mean() <= LOW * (theirs - expected).abs().mean()


@pytest.mark.parametrize("bias", [samencoder.BIAS, 3 * 8 * 8 * 8])
def test_gradients_are_those_of_segment_anything(bias, monkeypatch):
    monkeypatch.setattr(samencoder, "BIAS", bias)
    encoder = random_encoder(window_size=5, global_attn_indexes=(1,)).requires_grad_(True)
    pixels = images(encoder)
    names, parameters = zip(*encoder.named_parameters(), strict=True)
    found, expected = (
        torch.autograd.grad(run(pixels).square().mean(), parameters)
        for run in (partial(encoded, encoder), encoder)
    )
    for name, ours, theirs in zip(names, found, expected, strict=True):
        scale = theirs.abs().max()
        assert scale > 0, name
        assert (ours - theirs).abs().max() <= SAME * max(scale, 1), name


def test_an_image_does_not_depend_on_its_neighbours():
    """In batches of one shape, and alone, as on the lanes of a CPU."""
    encoder = random_encoder(window_size=5, global_attn_indexes=(1,))
    pixels = images(encoder, 4)
    whole = encoded(encoder, pixels)
    others = torch.cat([pixels[:1], images(encoder, 3)])
    assert encoded(encoder, others)[0].equal(whole[0])
    torch.testing.assert_close(encoded(encoder, pixels[:1])[0], whole[0], atol=SAME, rtol=0)


def test_attention_is_fused_on_the_cpu():
    """torch falls back to plain products without a word where its kernel takes no such mask."""
    encoder = random_encoder(window_size=5, global_attn_indexes=(1,))
    with torch.profiler.profile() as profile:
        encoded(encoder, images(encoder))
    names = {event.key for event in profile.key_averages()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in names
    assert "aten::_scaled_dot_product_attention_math" not in names


def test_masks_are_those_of_segment_anything():
    """Through the decoder, on the weights of the phantom bundle and the graph that runs use."""
    bundle = open_bundle("phantom")
    side = bundle.sam_config.image_size
    pixels = torch.randn(3, 3, side, side)
    boxes = torch.tensor([[0.1, 0.2, 0.7, 0.9], [0.3, 0.1, 0.9, 0.5], [0.0, 0.0, 0.4, 0.4]]) * side
    decode = open_graph(bundle, "sam_decoder", CPU)
    with torch.inference_mode():
        expected, _ = decode(bundle.sam.image_encoder(pixels), boxes)
        found, _ = decode(open_graph(bundle, "sam_encoder", CPU)(pixels), boxes)
    assert 0 < (expected > 0).float().mean() < 1
    assert ((found > 0) == (expected > 0)).all()
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
