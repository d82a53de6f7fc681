"""Bundles that many tests share, made once a session."""

import os

import cv2
import numba
import pytest
import torch
from models import CPU, pictures, spread_clip, spread_sam
from safetensors.torch import save_file

from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.types import Prompts
from medclipsam.engine.weights.bundle import CLIP_FOLDER, SAM_FOLDER, WEIGHTS, open_bundle
from medclipsam.engine.weights.models import build_clip, build_sam
from medclipsam.train.phantoms.bundle import (
    SAM_CONFIG,
    describe_phantom_bundle,
    write_clip_description,
)
from medclipsam.train.phantoms.phantoms import NULL_PROMPTS, PROMPTS

torch.set_num_threads(1)
cv2.setNumThreads(1)
numba.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_bundle_folder(tmp_path_factory):
    """The folder of a whole verified bundle of the phantom bundle's sizes."""
    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    write_clip_description(folder / CLIP_FOLDER)
    torch.manual_seed(11)
    clip = build_clip(folder / CLIP_FOLDER)
    spread_clip(clip, pictures(clip.image_size, 8), [*PROMPTS.values(), *NULL_PROMPTS])
    save_file(clip.model.state_dict(), folder / CLIP_FOLDER / WEIGHTS)
    sam = build_sam(SAM_CONFIG)
    spread_sam(sam)
    (folder / SAM_FOLDER).mkdir()
    save_file(sam.state_dict(), folder / SAM_FOLDER / WEIGHTS)
    describe_phantom_bundle(folder, {}, {"presence": None})
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_bundle_folder):
    return open_bundle(str(tiny_bundle_folder))


@pytest.fixture(scope="session")
def tiny_encoder(tiny_bundle):
    return ClipEncoder.open(tiny_bundle, CPU, rows=16)


@pytest.fixture(scope="session")
def exported_phantom(tmp_path_factory):
    """A copy of the phantom bundle with its ONNX export in fp32."""
    pytest.importorskip("onnxscript")
    from medclipsam.export.publish import export_onnx
    from medclipsam.export.scans import PROMPTS as WORDS
    from medclipsam.export.scans import draw_scans

    folder = tmp_path_factory.mktemp("exported")
    before = os.environ.get("MEDCLIPSAM_HOME")
    os.environ["MEDCLIPSAM_HOME"] = str(folder / "home")  # where the report goes
    try:
        return export_onnx(
            open_bundle("phantom"), "fp32", folder / "phantom", draw_scans(1), Prompts(WORDS), CPU,
            log=lambda line: None,
        )  # fmt: skip
    finally:
        os.environ.pop("MEDCLIPSAM_HOME")
        if before is not None:
            os.environ["MEDCLIPSAM_HOME"] = before
