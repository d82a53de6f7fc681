"""Rebuild the bundle that ships with the package, from a seed, on two CPU cores.

    medclipsam train phantom-bundle -o engine/bundles/phantom

Draws phantoms, trains the CLIP-shaped model with DHN-NCE and the SAM-shaped model with
boxes, and writes a bundle. Seeds below ``HELD_OUT`` are trained on; seeds from it on never are.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from medclipsam.engine.weights.bundle import (
    CLIP_FOLDER,
    SAM_FOLDER,
    WEIGHTS,
    Bundle,
    open_bundle,
    write_description,
)
from medclipsam.engine.weights.models import (
    CLIP_CONFIG,
    OPENAI_MEAN,
    OPENAI_STD,
    PHANTOM_VIT,
    TEXT_CONFIG,
    SamConfig,
    build_clip,
    build_sam,
)
from medclipsam.train.clip.fit import ClipTraining
from medclipsam.train.clip.run import BUNDLE, train_clip
from medclipsam.train.pairs.pairs import read_pairs
from medclipsam.train.phantoms.calibration import calibrate_confidence, calibrate_presence
from medclipsam.train.phantoms.pairs import IMAGES, MASKS, TABLE, write_phantom_pairs
from medclipsam.train.phantoms.phantoms import NULL_PROMPTS
from medclipsam.train.problems import Problems
from medclipsam.train.ranks import Ranks
from medclipsam.train.sam.bundle import fine_tune_sam
from medclipsam.train.sam.settings import SamTraining

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

PHANTOM_CLIP = ClipTraining(
    epochs=15,
    batch=64,
    learning_rate=8e-4,
    temperature=0.07,
    augmentation="patches",
    from_scratch=True,
)
PHANTOM_SAM = SamTraining(steps=1100, batch=12, learning_rate=8e-4, from_scratch=True)

DEFAULTS = {
    "saliency": {"method": "contrastcam"},
    "boxes": {"pad": 0.2},
    "null_prompts": list(NULL_PROMPTS),
}
# Learnt from the training captions by the WordPiece trainer of Hugging Face's tokenizers (up to
# 600 pieces, seen twice at least); kept, because that trainer breaks ties at random.
VOCABULARY = Path(__file__).parent / "vocabulary.txt"


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


def write_start_bundle(folder: Path, seed: int) -> Bundle:
    """Both architectures with random weights, to start from."""
    write_clip_description(folder / CLIP_FOLDER)
    torch.manual_seed(seed)
    (folder / SAM_FOLDER).mkdir(exist_ok=True)
    save_file(build_clip(folder / CLIP_FOLDER).model.state_dict(), folder / CLIP_FOLDER / WEIGHTS)
    save_file(build_sam(SAM_CONFIG).state_dict(), folder / SAM_FOLDER / WEIGHTS)
    describe_phantom_bundle(folder, {}, {})
    return open_bundle(str(folder))


def build_phantom_bundle(
    folder: Path,
    clip: ClipTraining = PHANTOM_CLIP,
    sam: SamTraining = PHANTOM_SAM,
    log: Callable[[str], None] = print,
    threads: int = 1,
) -> None:
    """Draw phantoms, train both models as ``train clip`` and ``train sam`` do, calibrate.

    What was done lies in ``.NAME.training`` beside ``folder`` until that is complete: the same
    call goes on from there. The same seed, machine and thread count give the same weights.

    Args:
        threads: processes that draw, threads that decode and compute.
    """
    torch.set_num_threads(threads)
    work = folder.absolute().with_name(f".{folder.name}.training")
    trained = _train_clip(work, clip, log, threads)
    scans = work / "scans"
    if not (scans / TABLE).exists():
        log(f"drawing {SAM_IMAGES} phantoms for SAM")
        write_phantom_pairs(scans, range(SAM_IMAGES), threads)
    if not (work / "sam").exists():
        fine_tune_sam(
            trained, scans / IMAGES, scans / MASKS, work / "sam", sam, log, threads=threads
        )
    for name in (CLIP_FOLDER, SAM_FOLDER):
        shutil.copytree(work / "sam" / name, folder / name, dirs_exist_ok=True)
    training = {"clip": asdict(clip), "sam": asdict(sam)}
    calibrated: dict[str, Any] = {"presence": calibrate_presence(folder / CLIP_FOLDER)}
    describe_phantom_bundle(folder, training, calibrated)
    log("calibrating the confidence, about a quarter of an hour")
    calibrated["confidence"] = asdict(calibrate_confidence(folder, threads))
    describe_phantom_bundle(folder, training, calibrated)
    shutil.rmtree(work)


def _train_clip(
    work: Path, training: ClipTraining, log: Callable[[str], None], threads: int
) -> Bundle:
    """The bundle with trained CLIP and random SAM."""
    table = work / "pairs" / TABLE
    if not table.exists():
        log(f"drawing {CLIP_IMAGES} phantoms for CLIP")
        write_phantom_pairs(table.parent, range(CLIP_IMAGES), threads)
    if not (work / "clip" / BUNDLE).exists():
        pairs = read_pairs(str(table), log=log, least=1, mask_column="spare")
        start = write_start_bundle(work / "start", training.seed)
        alone, problems = Ranks(0, 1, torch.device("cpu")), Problems(True, log)
        train_clip(start, pairs, work / "clip", training, alone, problems, 0.0, threads, log=log)
    return open_bundle(str(work / "clip" / BUNDLE))


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
