"""The published pipeline, written plainly, beside the runner: same weights, same images."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import torch

from medclipsam.benchmarks.bench.measure import FEW, START, Bench, Pilot
from medclipsam.benchmarks.measuring.spread import clock, take_turns
from medclipsam.benchmarks.rivals.published import PublishedPipeline
from medclipsam.engine.archive import Limits, open_archive
from medclipsam.engine.crf.reference import require_pydensecrf
from medclipsam.engine.errors import BackendError, ConfigError
from medclipsam.engine.run.trial import take_samples
from medclipsam.engine.weights.bundle import open_bundle

MOST = 60  # images; as ``benchmarks.archive`` has at the share at which both run


def require_published() -> None:
    """
    Raises:
        ConfigError: the published CRF is not installed.
    """
    try:
        require_pydensecrf()
    except BackendError as exc:
        raise ConfigError(
            "--against published runs the published CRF, which is not installed here; "
            "pip install 'medclipsam[reference]'"
        ) from exc


def run_against(bench: Bench, pilot: Pilot, budget: float) -> dict[str, Any]:
    """Images per second of both, and the ratio within each turn.

    Images are written as PNG first, so that the published pipeline can read them, too.
    """
    bench.tell("the published pipeline")
    device = bench.engine.pipeline.encoder.device
    # weights of its own: it moves them
    theirs = PublishedPipeline.open(open_bundle(str(bench.engine.bundle.folder)), device)
    prompts = {label: texts[0] for label, texts in bench.prompts.texts.items()}
    folder, out = bench.scratch / "png", bench.scratch / "published"
    found = write_pngs(bench, folder, 1)
    torch.set_num_threads(bench.engine.threads)
    theirs.run(folder, prompts, out)
    each = clock(lambda: theirs.run(folder, prompts, out)) + pilot.seconds * found
    # of few images the start of a run would be a large part
    turns = FEW if budget / FEW > 4 * each + START else 1
    count = max(1, min(MOST, int((budget / turns - START) / each)))
    shutil.rmtree(folder)
    count = write_pngs(bench, folder, count)
    archive = open_archive(str(folder))

    def publish() -> None:
        bench.tell("the published pipeline")
        shutil.rmtree(out, ignore_errors=True)
        torch.set_num_threads(bench.engine.threads)
        theirs.run(folder, prompts, out)

    def label() -> None:
        bench.tell("the runner beside it")
        bench.label(bench.engine, archive)

    label()
    seen = take_turns({"published": publish, "run": label}, turns, warm_up=0, limit=budget, short=0)
    return {
        "images": count,
        "run": seen.rate("run", count).to_json(),
        "published": seen.rate("published", count).to_json(),
        "times_faster": seen.times("run", "published").to_json(),
        "wordings": "the first of each prompt",
    }


def write_pngs(bench: Bench, folder: Path, count: int) -> int:
    """The middle frame of each of so many items; returns how many could be read."""
    folder.mkdir(parents=True)
    samples = take_samples(bench.source.take(count), bench.prompts, Limits())
    written = 0
    for rgb, _ in samples:
        written += 1
        cv2.imwrite(str(folder / f"{written:04}.png"), rgb[..., ::-1])
    return written
