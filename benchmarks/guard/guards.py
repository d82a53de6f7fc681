"""Which ratios are guarded: of two things in one process, in turns.

So the machine's speed does not matter. Floors lie far below what is measured on a quiet machine,
because this one may be busy: they find what has become two or three times as slow.
"""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medclipsam.benchmarks.inputs.archive import write_phantoms
from medclipsam.benchmarks.inputs.biomedclip import draw
from medclipsam.benchmarks.inputs.models import random_sam
from medclipsam.benchmarks.inputs.scans import SCANS, blob
from medclipsam.benchmarks.measuring.spread import Ratio, take_turns
from medclipsam.benchmarks.streaming import Contest
from medclipsam.engine.backends import open_graph
from medclipsam.engine.crf import CrfConfig, dense_crf
from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.engine import Engine
from medclipsam.engine.saliency import SaliencyConfig, ask, compute_saliency
from medclipsam.engine.types import Prompts
from medclipsam.engine.weights.bundle import open_bundle
from medclipsam.engine.weights.models import SamConfig
from medclipsam.train.phantoms.phantoms import MODALITIES, PROMPTS, TARGETS

CPU = torch.device("cpu")
SMALL_SAM = SamConfig(image_size=512, encoder_depth=4, global_blocks=(1, 3))  # ViT-B's width

Calls = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Guard:
    """One ratio: how many times as fast ``ours`` is as ``other``.

    Attributes:
        open: makes both calls, ``ours`` and ``other``; what they need lives in the stack.
        floor: the least that the ratio may be.
    """

    name: str
    open: Callable[[ExitStack], Calls]
    floor: float
    turns: int = 3

    def measure(self) -> Ratio:
        """Anew, with new calls."""
        with ExitStack() as stack:
            found = take_turns(self.open(stack), self.turns)
        return found.times("ours", "other")


def open_crf(kind: str, side: int, stack: ExitStack) -> Calls:
    """The dense CRF beside pydensecrf, one thread, one iteration."""
    rng = np.random.default_rng(side)
    rgb, p = SCANS[kind](side, rng), blob(side, rng)
    solvers = {"ours": "numba", "other": "pydensecrf"}
    return {
        name: partial(dense_crf, rgb, p, CrfConfig(solver=solver))  # type: ignore[arg-type]
        for name, solver in solvers.items()
    }


def open_sam(stack: ExitStack) -> Calls:
    """SAM's image encoder beside segment_anything's, of ViT-B's width at half its size."""
    bundle = random_sam(SMALL_SAM)
    sam: Any = bundle.sam
    pixels = torch.randn(2, 3, SMALL_SAM.image_size, SMALL_SAM.image_size)
    theirs = torch.inference_mode()(sam.image_encoder)
    ours = open_graph(bundle, "sam_encoder", CPU)
    return {"ours": partial(ours, pixels), "other": partial(theirs, pixels)}


def open_rows(stack: ExitStack) -> Calls:
    """gScoreCAM's rows, with all that belongs to them, beside as many plain forwards in batches."""
    bundle, channels = open_bundle("phantom"), 128
    model: Any = bundle.clip.model
    encoder = ClipEncoder.open(bundle, CPU, rows=64)
    image, texts = draw(1, encoder.image_size), encoder.encode_text([PROMPTS["mass"]])
    batches = encoder.normalise(draw(channels, encoder.image_size)).split(64)

    def saliency() -> None:
        asked = ask(encoder, image, texts)
        list(compute_saliency(encoder, asked, SaliencyConfig(k=channels)))

    @torch.inference_mode()
    def plain() -> None:
        for batch in batches:
            model.encode_image(batch)

    return {"ours": saliency, "other": plain}


def open_runner(stack: ExitStack) -> Calls:
    """The runner beside the loop, with gradcam, where overlap shows."""
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    write_phantoms(scratch / "archive", 60, 160)
    prompts = Prompts({target: (PROMPTS[target],) for target in TARGETS[MODALITIES[0]]})
    engine = Engine.open("phantom", "cpu", settings={"saliency": {"method": "gradcam"}})
    contest = Contest(engine, scratch / "archive", prompts, scratch)
    return {"ours": contest.stream, "other": contest.loop}


GUARDS = (
    Guard("CRF on grey, beside pydensecrf", partial(open_crf, "grey speckled", 512), 8.0),
    Guard("CRF on colour, beside pydensecrf", partial(open_crf, "colour natural", 256), 1.5),
    Guard("SAM encoder, beside segment_anything", open_sam, 1.1),
    Guard("rows, beside plain forwards", open_rows, 0.55),
    Guard("runner, beside the loop", open_runner, 0.7),
)
