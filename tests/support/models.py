"""Small models with random weights, spread so that nothing about them is degenerate."""

import math

import numpy as np
import torch

from medclipsam.engine.backends.pytorch import decode_boxes
from medclipsam.train.phantoms.phantoms import make_phantom

CPU = torch.device("cpu")
BIOMEDCLIP_SCALE = 85.2  # logit scale of the released weights


def pictures(side, count, seed=0):
    """float32 (count, 3, side, side) in [0, 1]: phantoms squashed to a square."""
    drawn = [make_phantom(seed + n, size=(side, side)).pixels for n in range(count)]
    return torch.from_numpy(np.stack(drawn))[:, None].expand(-1, 3, -1, -1).contiguous()


@torch.no_grad()
def spread_clip(clip, images, texts):
    """Random towers map everything to nearly one point; centre them so that cosines vary.

    The last norms get the negative mean of their own output as bias, attention gets the
    sharpness and the logit scale the size that training gives them.
    """
    trunk = clip.model.visual.trunk
    for block in trunk.blocks:
        block.attn.qkv.weight.mul_(2)
    clip.model.logit_scale.fill_(math.log(BIOMEDCLIP_SCALE))
    mean = torch.tensor(clip.mean)[:, None, None]
    std = torch.tensor(clip.std)[:, None, None]
    trunk.norm.bias.sub_(trunk.norm(trunk.forward_features((images - mean) / std))[:, 0].mean(0))
    norm = clip.model.text.transformer.encoder.layer[-1].output.LayerNorm
    seen = []
    hook = norm.register_forward_hook(lambda *call: seen.append(call[2][:, 0]))
    clip.model.encode_text(clip.tokenizer(texts))
    hook.remove()
    norm.bias.sub_(torch.cat(seen).mean(0))


@torch.no_grad()
def spread_sam(sam, gain=30.0, level=-1.0):
    """Random SAMs answer a flat logit near zero: amplify it and shift its mean to ``level``.

    The shift goes into the bias of the last layer that makes the weights of a mask, along
    the mean of what they multiply, so that masks fill some of the picture, never all of it.
    """
    last = sam.mask_decoder.output_hypernetworks_mlps[0].layers[-1]
    last.weight.mul_(gain)
    last.bias.mul_(gain)
    side = sam.image_encoder.img_size
    embeddings = sam.image_encoder(sam.preprocess(255 * pictures(side, 4)))
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.9], [0.3, 0.1, 0.9, 0.5]] * 2) * side
    seen = []
    hook = sam.mask_decoder.output_upscaling.register_forward_hook(
        lambda *call: seen.append(call[2].mean((0, 2, 3)))
    )
    logits, _ = decode_boxes(sam, embeddings, boxes)
    hook.remove()
    last.bias.add_((level - logits.mean()) * seen[0] / seen[0].square().sum())
    sam.mask_decoder.iou_prediction_head.layers[-1].bias.add_(0.5)
