"""A full-size BiomedCLIP with random weights, and pictures and texts to ask it about."""

import json
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from medclipsam.engine.fit import normalise_rgb
from medclipsam.engine.weights.bundle import Bundle
from medclipsam.engine.weights.models import build_clip
from medclipsam.train.phantoms.phantoms import LESIONS, MODALITIES, make_phantom

SCANS = ("breast ultrasound", "brain mri", "chest x-ray")  # in the order of MODALITIES
FINDINGS = ("mass", "tumor", "nodule", "cyst", "ventricles", "effusion")
TEXTS = [f"{scan} showing a {finding}" for finding in FINDINGS for scan in SCANS]
LOGIT_SCALE = 85.2  # of the released weights
BIOMEDCLIP = {
    "embed_dim": 512,
    "vision_cfg": {
        "timm_model_name": "vit_base_patch16_224", "timm_pool": "", "timm_proj": "linear",
        "image_size": 224,
    },
    "text_cfg": {
        "hf_model_name": "text_config", "hf_tokenizer_name": "text_config", "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler", "context_length": 256,
    },
}  # fmt: skip


def random_biomedclip() -> Bundle:
    """A full-size BiomedCLIP that knows the words of ``TEXTS``; nothing is downloaded."""
    from transformers import BertConfig, BertTokenizerFast  # type: ignore[attr-defined]

    words = sorted(set(re.findall(r"\w+|-", " ".join(TEXTS))))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
        (folder / "vocab.txt").write_text("\n".join(vocabulary))
        BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(name)
        BertConfig(vocab_size=30522).save_pretrained(str(folder / "text_config"))
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": BIOMEDCLIP}))
        torch.manual_seed(5)
        clip = build_clip(folder)
    _spread(clip)
    bundle = Bundle(Path("random"), {})
    bundle.__dict__["clip"] = clip  # stands in for the cached property
    return bundle


@torch.no_grad()
def _spread(clip: Any) -> None:
    """Centre both towers and sharpen attention, as training would.

    Random towers map all texts to nearly one point, so all prompts would choose the same
    channels and several prompts would look cheaper than they are.
    """
    trunk = clip.model.visual.trunk
    for block in trunk.blocks:
        block.attn.qkv.weight.mul_(2)
    clip.model.logit_scale.fill_(math.log(LOGIT_SCALE))
    pixels = normalise_rgb(draw(len(MODALITIES), clip.image_size, 100), clip.mean, clip.std)
    trunk.norm.bias.sub_(trunk.norm(trunk.forward_features(pixels))[:, 0].mean(0))
    norm, seen = clip.model.text.transformer.encoder.layer[-1].output.LayerNorm, []
    hook = norm.register_forward_hook(lambda *call: seen.append(call[2][:, 0]))
    clip.model.encode_text(clip.tokenizer(TEXTS))
    hook.remove()
    norm.bias.sub_(torch.cat(seen).mean(0))


def draw(count: int, side: int, first: int = 0) -> Tensor:
    """Phantoms with a lesion, squashed to a square: float32 (count, 3, side, side) in [0, 1]."""
    modalities = [MODALITIES[n % len(MODALITIES)] for n in range(count)]
    drawn = [make_phantom(first + n, m, [LESIONS[m]]).pixels for n, m in enumerate(modalities)]
    grey = np.stack([cv2.resize(g, (side, side), interpolation=cv2.INTER_AREA) for g in drawn])
    return torch.from_numpy(grey)[:, None].expand(-1, 3, -1, -1).contiguous()
