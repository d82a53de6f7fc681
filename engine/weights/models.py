"""What the weights are: BiomedCLIP-shaped and SAM-shaped networks, built and loaded.

Refuses to know where files come from or whether they may be trusted: that is
``bundle``'s. Both networks are those of their libraries (open_clip, segment-anything);
only their sizes are ours.
"""

import copy
import json
import logging
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from medclipsam.engine.errors import BundleError

CLIP_CONFIG = "open_clip_config.json"
TEXT_CONFIG = "text_config"
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
PHANTOM_VIT = "vit_phantom_patch8_96"


@dataclass(frozen=True)
class SamConfig:
    """Every size of a SAM; the defaults are ViT-B's (segment_anything.build_sam).

    ``fit`` is how an image enters the square input: ``pad`` scales its longest side
    (SAM), ``squash`` scales both (MedSAM, whose input is also plain [0, 1]).
    """

    image_size: int = 1024
    patch_size: int = 16
    encoder_width: int = 768
    encoder_depth: int = 12
    encoder_heads: int = 12
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    window: int = 14
    channels: int = 256
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    mask_channels: int = 16
    pixel_mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, ...] = (58.395, 57.12, 57.375)
    fit: Literal["pad", "squash"] = "pad"


SAM_PRESETS = {
    "vit_b": SamConfig(),
    "vit_l": SamConfig(
        encoder_width=1024, encoder_depth=24, encoder_heads=16, global_blocks=(5, 11, 17, 23)
    ),
    "vit_h": SamConfig(
        encoder_width=1280, encoder_depth=32, encoder_heads=16, global_blocks=(7, 15, 23, 31)
    ),
    "medsam": SamConfig(fit="squash", pixel_mean=(0.0,) * 3, pixel_std=(255.0,) * 3),
}


def build_sam(config: SamConfig) -> nn.Module:
    """A ``segment_anything.modeling.Sam`` with random weights, in eval mode."""
    from segment_anything.modeling import (
        ImageEncoderViT,
        MaskDecoder,
        PromptEncoder,
        Sam,
        TwoWayTransformer,
    )

    cells = config.image_size // config.patch_size
    return Sam(
        image_encoder=ImageEncoderViT(
            depth=config.encoder_depth,
            embed_dim=config.encoder_width,
            img_size=config.image_size,
            mlp_ratio=4,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            num_heads=config.encoder_heads,
            patch_size=config.patch_size,
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=config.global_blocks,
            window_size=config.window,
            out_chans=config.channels,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=config.channels,
            image_embedding_size=(cells, cells),
            input_image_size=(config.image_size, config.image_size),
            mask_in_chans=config.mask_channels,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=config.decoder_depth,
                embedding_dim=config.channels,
                mlp_dim=config.decoder_mlp,
                num_heads=config.decoder_heads,
            ),
            transformer_dim=config.channels,
            iou_head_depth=3,
            iou_head_hidden_dim=config.channels,
        ),
        pixel_mean=list(config.pixel_mean),
        pixel_std=list(config.pixel_std),
    ).eval()


@dataclass(frozen=True)
class Clip:
    """A CLIP ready for use.

    Attributes:
        model: ``open_clip.CustomTextCLIP`` with a timm ViT at ``visual.trunk``, eval mode.
        tokenizer: texts → int64 (T, context) token ids.
        image_size: side of the square input in pixels.
        mean, std: per-channel normalisation of RGB in [0, 1].
    """

    model: nn.Module
    tokenizer: Any
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def build_clip(folder: Path) -> Clip:
    """Build, with random weights, the model that an open_clip model folder describes.

    The folder holds ``open_clip_config.json`` and tokenizer files; the sizes of the
    text tower stand in its ``text_config/`` (a BERT ``config.json``), so that nothing is
    looked up on a network.

    Raises:
        BundleError: a file is missing or describes a model without a timm ViT.
    """
    import open_clip

    register_phantom_vit()
    path = folder / CLIP_CONFIG
    try:
        config = json.loads(path.read_text("utf-8"))
        model_config = copy.deepcopy(config["model_cfg"])
        model_config["text_cfg"]["hf_model_name"] = str(folder / TEXT_CONFIG)
    except (OSError, ValueError, KeyError) as exc:
        raise BundleError(
            f"{path} is not a readable open_clip configuration ({exc!r}); "
            "import the model again with 'medclipsam models import'"
        ) from exc
    if "timm_model_name" not in model_config["vision_cfg"]:
        raise BundleError(
            f"{path} describes no timm vision tower; BiomedCLIP-shaped models have one "
            "(vision_cfg.timm_model_name)"
        )
    model_config["vision_cfg"]["timm_model_pretrained"] = False
    model_config["text_cfg"]["hf_model_pretrained"] = False
    model_config.pop("custom_text", None)
    preprocess = config.get("preprocess_cfg", {})
    with _offline():
        model = open_clip.CustomTextCLIP(**model_config).eval()
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    size = model.visual.image_size
    return Clip(
        model,
        tokenizer,
        int(size[0] if isinstance(size, tuple) else size),
        tuple(preprocess.get("mean", OPENAI_MEAN)),
        tuple(preprocess.get("std", OPENAI_STD)),
    )


def register_phantom_vit() -> None:
    """Make timm know the small ViT of the phantom bundle, so that open_clip can build it."""
    import timm
    from timm.models import register_model
    from timm.models.vision_transformer import VisionTransformer

    if timm.is_model(PHANTOM_VIT):
        return

    def vit_phantom_patch8_96(pretrained: bool = False, **settings: Any) -> nn.Module:
        known = {k: v for k, v in settings.items() if k in ("num_classes", "global_pool")}
        vit = VisionTransformer(
            img_size=96, patch_size=8, embed_dim=128, depth=4, num_heads=4, **known
        )
        setattr(vit, "default_cfg", {"pool_size": None})  # noqa: B010 - torch types attributes
        return vit

    vit_phantom_patch8_96.__module__ = __name__
    register_model(vit_phantom_patch8_96)


class _offline:
    """Hugging Face libraries stay silent and off the network inside this block."""

    def __enter__(self) -> None:
        self._before = os.environ.get("HF_HUB_OFFLINE")
        os.environ["HF_HUB_OFFLINE"] = "1"
        logging.getLogger("transformers").setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = self._before


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill ``model`` from a safetensors file, every tensor named and shaped as expected.

    Raises:
        BundleError: the file is unreadable or does not fit the model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(str(path))
    except (OSError, SafetensorError) as exc:
        raise BundleError(f"{path} is not a readable safetensors file: {exc}") from exc
    load_state(model, state, path)


def load_state(model: nn.Module, state: dict[str, torch.Tensor], source: Path) -> None:
    """Fill ``model`` from ``state``; position buffers that libraries add or drop may differ.

    Raises:
        BundleError: tensors are missing, unknown or of another shape.
    """
    try:
        result = model.load_state_dict(state, strict=False)
    except RuntimeError as exc:
        raise BundleError(f"{source} holds weights of another model: {exc}") from exc
    missing = [k for k in result.missing_keys if not k.endswith("position_ids")]
    unknown = [k for k in result.unexpected_keys if not k.endswith("position_ids")]
    if missing or unknown:
        raise BundleError(
            f"{source} holds weights of another model: {len(missing)} tensors missing "
            f"(first: {missing[:2]}), {len(unknown)} unknown (first: {unknown[:2]})"
        )
