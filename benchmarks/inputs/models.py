"""Models of full size with random weights."""

from dataclasses import asdict
from pathlib import Path

import torch

from medclipsam.benchmarks.inputs.biomedclip import random_biomedclip
from medclipsam.engine.weights.bundle import Bundle
from medclipsam.engine.weights.models import SAM_PRESETS, SamConfig, build_sam

POSITIONS = 0.02  # deviation of relative positions, which segment_anything starts at zero


def random_bundle(model: str) -> Bundle:
    """``biomedclip`` or a SAM such as ``vit_b``: weights of its full size, and nothing on disk."""
    if model == "biomedclip":
        bundle = Bundle(Path("random"), {"files": {}})
        bundle.__dict__["clip"] = random_biomedclip().clip
        return bundle
    return random_sam(SAM_PRESETS[model])


def random_pair(sam: str) -> Bundle:
    """BiomedCLIP and a SAM such as ``vit_b`` in one."""
    clip, other = random_bundle("biomedclip"), random_bundle(sam)
    description = {"name": f"random {sam}", "files": {}, "sam": other.description["sam"]}
    bundle = Bundle(Path("random"), description)
    bundle.__dict__.update(clip=clip.clip, sam=other.sam)
    return bundle


def random_sam(config: SamConfig) -> Bundle:
    """A SAM of any size."""
    torch.manual_seed(0)
    sam = build_sam(config)
    for name, parameter in sam.named_parameters():
        if "rel_pos" in name:
            torch.nn.init.normal_(parameter, std=POSITIONS)
    bundle = Bundle(Path("random"), {"files": {}, "sam": asdict(config)})
    bundle.__dict__["sam"] = sam
    return bundle
