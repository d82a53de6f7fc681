"""Rebuild the bundle that ships with the package, from a seed, on two CPU cores.

    medclipsam train phantom-bundle -o engine/bundles/phantom

Draws phantoms, trains the CLIP-shaped model with DHN-NCE and the SAM-shaped model with
boxes, and writes a bundle. Seeds below ``HELD_OUT`` are trained on; seeds from it on never are.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from medclipsam.engine.bundle import CLIP_FOLDER, SAM_FOLDER, WEIGHTS, write_description
from medclipsam.engine.fit import normalise_rgb
from medclipsam.engine.models import (
    CLIP_CONFIG,
    OPENAI_MEAN,
    OPENAI_STD,
    PHANTOM_VIT,
    TEXT_CONFIG,
    SamConfig,
    build_clip,
    build_sam,
)
from medclipsam.train.clip import ClipTraining, train_clip
from medclipsam.train.phantom_calibration import calibrate_confidence, calibrate_presence
from medclipsam.train.phantom_data import draw_phantoms, union_mask
from medclipsam.train.phantoms import NULL_PROMPTS
from medclipsam.train.sam import SamTraining, train_sam

HELD_OUT = 1_000_000
CLIP_IMAGES, SAM_IMAGES = 12_000, 3_000
CONTEXT = 32
SAM_CONFIG = SamConfig(
    image_size=128,
    patch_size=8,
    encoder_width=96,
    encoder_depth=4,
    encoder_heads=4,
    global_blocks=(1, 3),
    window=8,
    channels=64,
    decoder_heads=4,
    decoder_mlp=256,
)

DEFAULTS = {
    "saliency": {"method": "contrastcam"},
    "boxes": {"pad": 0.2},
    "null_prompts": list(NULL_PROMPTS),
}
# Learnt from the training captions by the WordPiece trainer of Hugging Face's tokenizers (up to
# 600 pieces, seen twice at least); kept, because that trainer breaks ties at random.
VOCABULARY = Path(__file__).parent / "phantom_vocabulary.txt"


def write_clip_description(folder: Path) -> None:
    """Configuration and WordPiece tokenizer of the phantom CLIP."""
    from transformers import BertConfig, BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(VOCABULARY, folder / "vocab.txt")
    tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"), do_lower_case=True)
    tokenizer.save_pretrained(str(folder))
    text = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=CONTEXT,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    text.save_pretrained(str(folder / TEXT_CONFIG))
    config = {
        "model_cfg": {
            "embed_dim": 128,
            "vision_cfg": {
                "timm_model_name": PHANTOM_VIT,
                "timm_pool": "",
                "timm_proj": "linear",
                "image_size": 96,
            },
            "text_cfg": {
                "hf_model_name": TEXT_CONFIG,
                "hf_tokenizer_name": TEXT_CONFIG,
                "hf_proj_type": "mlp",
                "hf_pooler_type": "cls_last_hidden_state_pooler",
                "context_length": CONTEXT,
            },
        },
        "preprocess_cfg": {"mean": OPENAI_MEAN, "std": OPENAI_STD},
    }
    (folder / CLIP_CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def train_phantom_clip(
    folder: Path, training: ClipTraining, log: Callable[[str], None] = print
) -> None:
    """Fill ``folder`` with a trained CLIP: description, tokenizer, ``model.safetensors``."""
    drawn = draw_phantoms(range(CLIP_IMAGES), 96, torch.get_num_threads())
    write_clip_description(folder)
    torch.manual_seed(training.seed)
    clip = build_clip(folder)
    tokens = clip.tokenizer(drawn.captions)
    train_clip(
        clip.model,
        drawn.images,
        np.stack([union_mask(masks, drawn.images.shape[1:]) for masks in drawn.masks]),
        tokens,
        lambda rgb: normalise_rgb(rgb, clip.mean, clip.std),
        training,
        log,
    )
    save_file(clip.model.state_dict(), folder / WEIGHTS)


def train_phantom_sam(
    folder: Path, training: SamTraining, log: Callable[[str], None] = print
) -> None:
    """Fill ``folder`` with the weights of a trained SAM of ``SAM_CONFIG``."""
    side = SAM_CONFIG.image_size
    drawn = draw_phantoms(range(SAM_IMAGES), side, torch.get_num_threads())
    pairs = [(n, mask) for n, masks in enumerate(drawn.masks) for mask in masks.values()]
    pairs = [(n, mask) for n, mask in pairs if mask.any()]
    torch.manual_seed(training.seed)
    sam = build_sam(SAM_CONFIG)
    train_sam(
        sam,
        drawn.images,
        np.stack([mask for _, mask in pairs]),
        np.array([n for n, _ in pairs]),
        training,
        log,
    )
    folder.mkdir(parents=True, exist_ok=True)
    save_file(sam.state_dict(), folder / WEIGHTS)


def build_phantom_bundle(
    folder: Path,
    clip: ClipTraining | None = None,
    sam: SamTraining | None = None,
    log: Callable[[str], None] = print,
) -> None:
    """Train both models and write the whole bundle into ``folder``.

    The same seed, machine and thread count give the same weights.
    """
    clip, sam = clip or ClipTraining(), sam or SamTraining()
    train_phantom_clip(folder / CLIP_FOLDER, clip, log)
    train_phantom_sam(folder / SAM_FOLDER, sam, log)
    training = {"clip": asdict(clip), "sam": asdict(sam)}
    calibrated: dict[str, Any] = {"presence": calibrate_presence(folder / CLIP_FOLDER)}
    describe_phantom_bundle(folder, training, calibrated)
    calibrated["confidence"] = asdict(calibrate_confidence(folder))
    describe_phantom_bundle(folder, training, calibrated)


def describe_phantom_bundle(
    folder: Path, training: dict[str, Any], calibrated: dict[str, Any]
) -> None:
    """Write ``bundle.json`` over what training left in ``folder``.

    ``calibrated`` holds settings that were found after training: ``presence``, ``confidence``.
    """
    write_description(
        folder,
        "phantom",
        {"identity": "trained on synthetic scans by medclipsam.train", "licence": "Apache-2.0"},
        "trained on synthetic scans by medclipsam.train",
        SAM_CONFIG,
        {**DEFAULTS, **calibrated},
        {"training": training, "use": "synthetic scans only; knows nothing of patients"},
    )
