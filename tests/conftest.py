"""Bundles that many tests share, made once a session."""

from functools import cache

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


def use_one_thread():
    """Sums depend on how many threads share them."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    numba.set_num_threads(1)


use_one_thread()


@pytest.fixture(autouse=True)
def own_threads():
    """Commands that a test calls in this process set threads; the next test has its own again."""
    yield
    use_one_thread()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests run in one process, and so do all files that need traces of one bundle.

    Tracing takes most of the time of such tests.
    """
    from xdist.scheduler import LoadFileScheduling

    @cache
    def needs_traces(file):
        text = (config.rootpath / file).read_text()
        return "exported_phantom" in text or "from exporting import" in text

    class ByFileOrTraces(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "traces" if needs_traces(file) else file

    return ByFileOrTraces(config, log)


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
    from exporting import model_of, phantom

    from medclipsam.export import publish
    from medclipsam.export.scans import PROMPTS as WORDS
    from medclipsam.export.scans import draw_scans

    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDCLIPSAM_HOME", str(folder / "home"))  # where the report goes
        patch.setattr(publish, "build_model", lambda _, *graph: model_of(*graph))
        return publish.export_onnx(
            phantom(), "fp32", folder / "phantom", draw_scans(1), Prompts(WORDS), CPU,
            log=lambda line: None,
        )  # fmt: skip
