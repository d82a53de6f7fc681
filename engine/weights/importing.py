"""Released or fine-tuned weights on disk → a bundle.

Pickled weights are opened only when their sha256 is known (listed here or given by the
user), with ``weights_only=True``, and leave as safetensors. Every tensor must fit the
model that the configuration describes.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from medclipsam.engine.durable import growing_folder
from medclipsam.engine.errors import BundleError, ConfigError
from medclipsam.engine.weights.bundle import (
    CLIP_FOLDER,
    DESCRIPTION,
    SAM_FOLDER,
    WEIGHTS,
    Bundle,
    sha256_file,
    write_description,
)
from medclipsam.engine.weights.models import (
    CLIP_CONFIG,
    SAM_PRESETS,
    TEXT_CONFIG,
    build_clip,
    build_sam,
    load_state,
)

BIOMEDCLIP = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
BIOMEDCLIP_REVISION = "9f341de24bfb00180f1b847274256e9b65a3a32e"
BIOMEDCLIP_WEIGHTS = "52cc993c5c5ff962bd0c60931874bc001e7e9b41666a385530f4a036294576be"
SAM_VIT_B = "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"
SAM_VIT_L = "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"
SAM_VIT_H = "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"
KNOWN = {
    BIOMEDCLIP_WEIGHTS: "BiomedCLIP",
    SAM_VIT_B: "SAM ViT-B",
    SAM_VIT_L: "SAM ViT-L",
    SAM_VIT_H: "SAM ViT-H",
}
CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", WEIGHTS)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
# text towers whose sizes are those of BERT-base (transformers.BertConfig's defaults)
BERT_BASE = (
    "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
    "microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract",
)


@dataclass(frozen=True)
class Source:
    """One weight file and what is known of it.

    Attributes:
        path: ``.safetensors``, or a pickle (``.bin``, ``.pt``, ``.pth``).
        sha256: expected hash; needed for a pickle that is not in ``KNOWN``.
    """

    path: Path
    sha256: str | None = None


def import_bundle(
    name: str,
    clip_folder: Path,
    sam: Source,
    sam_type: str,
    out: Path,
    clip: Source | None = None,
) -> Bundle:
    """Write the bundle ``name`` into the new folder ``out``.

    Args:
        name: how the bundle calls itself.
        clip_folder: an open_clip model folder: ``open_clip_config.json`` and tokenizer
            files, as a BiomedCLIP download has them.
        sam: SAM weights, Meta's or fine-tuned.
        sam_type: one of ``SAM_PRESETS``.
        out: a folder that does not exist yet.
        clip: fine-tuned CLIP weights; by default those in ``clip_folder``.

    Raises:
        BundleError: files are missing, of unknown hash, or do not fit.
        ConfigError: ``out`` exists, or ``sam_type`` is unknown.
    """
    if sam_type not in SAM_PRESETS:
        raise ConfigError(f"unknown SAM type {sam_type!r}; choose from {', '.join(SAM_PRESETS)}")
    if out.exists():
        raise ConfigError(f"{out} exists already; choose a new folder for the bundle")
    clip = clip or Source(find_clip_weights(clip_folder))
    with growing_folder(out) as growing:
        partial = growing.path
        _copy_clip_description(clip_folder, partial / CLIP_FOLDER)
        clip_hash = _convert(
            clip, build_clip(partial / CLIP_FOLDER).model, partial / CLIP_FOLDER / WEIGHTS
        )
        sam_hash = _convert(sam, build_sam(SAM_PRESETS[sam_type]), partial / SAM_FOLDER / WEIGHTS)
        provenance = {"identity": KNOWN.get(clip_hash, clip.path.name), "source_sha256": clip_hash}
        identity = f"{KNOWN.get(sam_hash, sam.path.name)} ({sam_type}), sha256 {sam_hash}"
        write_description(partial, name, provenance, identity, SAM_PRESETS[sam_type], {})
    return Bundle(out, json.loads((out / DESCRIPTION).read_text("utf-8")))


def find_clip_weights(folder: Path) -> Path:
    """The weight file of an open_clip model folder, safetensors preferred.

    Raises:
        BundleError: there is none.
    """
    for name in CLIP_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise BundleError(f"{folder} holds no CLIP weights; expected one of {', '.join(CLIP_WEIGHTS)}")


def _copy_clip_description(source: Path, target: Path) -> None:
    """Configuration, tokenizer and the sizes of the text tower."""
    target.mkdir(parents=True)
    try:
        config = json.loads((source / CLIP_CONFIG).read_text("utf-8"))
        text_name = config["model_cfg"]["text_cfg"]["hf_model_name"]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise BundleError(
            f"{source} is no open_clip model folder with a BERT text tower: "
            f"{CLIP_CONFIG} is missing or incomplete ({exc!r})"
        ) from exc
    shutil.copy(source / CLIP_CONFIG, target / CLIP_CONFIG)
    copied = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not {"tokenizer.json", "vocab.txt"} & set(copied):
        raise BundleError(f"{source} holds no tokenizer (tokenizer.json or vocab.txt)")
    for name in copied:
        shutil.copy(source / name, target / name)
    sizes = source / TEXT_CONFIG / "config.json"
    (target / TEXT_CONFIG).mkdir()
    if sizes.is_file():
        shutil.copy(sizes, target / TEXT_CONFIG / "config.json")
    elif text_name in BERT_BASE:
        from transformers import BertConfig

        BertConfig().save_pretrained(str(target / TEXT_CONFIG))
    else:
        raise BundleError(
            f"the sizes of the text tower {text_name!r} are unknown; put its config.json "
            f"into {source / TEXT_CONFIG}/"
        )


def _convert(source: Source, model: torch.nn.Module, target: Path) -> str:
    """Check, load, fit and store one weight file; returns the source's sha256."""
    from safetensors.torch import load_file, save_file

    path = source.path
    try:
        actual = sha256_file(path)
    except OSError as exc:
        raise BundleError(f"cannot read weights {path}: {exc.strerror}") from exc
    if source.sha256 and actual != source.sha256.lower():
        raise BundleError(f"{path} has sha256 {actual}, expected {source.sha256}; not loaded")
    if path.suffix == ".safetensors":
        state = load_file(str(path))
    elif source.sha256 or actual in KNOWN:
        state = _open_pickle(path)
    else:
        raise BundleError(
            f"{path} is a pickle of unknown sha256 {actual}; if that is the hash its publisher "
            "gives, pass it with --clip-sha256 or --sam-sha256"
        )
    load_state(model, state, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, str(target))
    return actual


def _open_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint: a plain state, or one under ``state_dict`` or ``model``."""
    import pickle

    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as exc:
        raise BundleError(f"{path} holds more than weights, or is damaged: {exc}") from exc
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(torch.is_tensor(v) for v in content.values()):
        raise BundleError(f"{path} holds no plain dictionary of tensors")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}
