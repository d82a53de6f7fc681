"""Features, gradients and scores of the whole open_clip model, by plain autograd."""

import math

import torch
from torch.nn import functional as F

AUTOGRAD = 1e-4  # float32 in another order, times a logit scale of 85
TEXTS = ("brain mri showing a tumor", "breast ultrasound showing a cyst", "normal chest x-ray")


def looked_at(clip, rgb, text):
    """Patch tokens at norm1 of the last block and the logit's gradient there, by a hook."""
    seen = []
    hook = clip.model.visual.trunk.blocks[-1].norm1.register_forward_hook(
        lambda module, inputs, output: (output.retain_grad(), seen.append(output))[1]
    )
    pixels = normalised(clip, rgb).requires_grad_()
    logit = clip.model.logit_scale.exp() * cosine(clip, pixels, text)
    hook.remove()
    logit.backward()
    tokens = seen[0]
    return tokens[0, 1:].detach(), tokens.grad[0, 1:]


def normalised(clip, rgb):
    mean, std = torch.tensor(clip.mean), torch.tensor(clip.std)
    return ((rgb.permute(0, 2, 3, 1) - mean) / std).permute(0, 3, 1, 2).contiguous()


def cosine(clip, pixels, text):
    vector = clip.model.encode_image(pixels)[0]
    return (vector / vector.norm()) @ text


def encoded(clip, text):
    with torch.no_grad():
        vector = clip.model.encode_text(clip.tokenizer([text]))[0]
    return vector / vector.norm()


def stretch(values):
    return (values - values.min()) / (values.max() - values.min() + 1e-6)  # as step 3 has it


def reference_gscorecam(clip, rgb, text, k):
    tokens, gradient = looked_at(clip, rgb, text)
    patches, channels = tokens.shape
    side = math.isqrt(patches)
    importance = gradient.sum(0) / patches
    chosen = sorted(range(channels), key=lambda c: -float(importance[c]))[:k]
    pixels = normalised(clip, rgb)
    scores = [0.0] * channels
    for c in chosen:
        small = tokens[:, c].reshape(1, 1, side, side)
        large = F.interpolate(small, pixels.shape[2:], mode="bilinear", align_corners=True)
        with torch.no_grad():
            logit = clip.model.logit_scale.exp() * cosine(clip, pixels * stretch(large), text)
        scores[c] = float(logit)
    highest = max(scores)
    weights = [math.exp(s - highest) for s in scores]
    cam = torch.zeros(patches)
    for c in range(channels):
        cam += weights[c] / sum(weights) * tokens[:, c]
    return stretch(cam.clamp(min=0)).reshape(side, side)
