"""The four contrastive losses at equal budget, several seeds each, from one common start.

    python -m medclipsam.benchmarks.losses --work WORK

As BiomedCLIP was before its fine-tuning, the start is trained with InfoNCE, on phantoms of its own;
then each loss fine-tunes it on the same further phantoms, once a seed, and is judged on others:
retrieval among all of them, and the masks of the lesion, zero-shot. Interrupted, it goes on.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from medclipsam.engine.archive import Decoders
from medclipsam.engine.durable import write_durable
from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.engine import Engine
from medclipsam.engine.evaluation.metrics import dice
from medclipsam.engine.weights.bundle import Bundle, open_bundle
from medclipsam.train.clip.fit import ClipTraining
from medclipsam.train.clip.run import BUNDLE, train_clip
from medclipsam.train.losses import LOSSES
from medclipsam.train.pairs.pairs import PairList, Problems, load_image, read_pairs
from medclipsam.train.phantoms.bundle import PHANTOM_CLIP
from medclipsam.train.phantoms.pairs import TABLE, write_phantom_pairs
from medclipsam.train.phantoms.phantoms import LESIONS, MODALITIES, PROMPTS, TARGETS, make_phantom
from medclipsam.train.ranks import Ranks
from medclipsam.train.retrieval.embedding import Embedder
from medclipsam.train.retrieval.retrieval import DIRECTIONS, retrieve

START, TUNE, TEST, SEGMENT = 5_000_000, 5_200_000, 5_400_000, 5_600_000  # first seeds
CPU = torch.device("cpu")
TOPS = (1, 10)
FIGURES = (*(f"{direction} top-{top}" for direction in DIRECTIONS for top in TOPS), "DSC")


def phantom_pairs(folder: Path, first: int, count: int, threads: int) -> PairList:
    """Phantoms of ``count`` seeds from ``first`` on, written where they are not yet."""
    if not (folder / TABLE).exists():
        write_phantom_pairs(folder, range(first, first + count), threads)
    return read_pairs(str(folder / TABLE), log=click.echo, least=1, mask_column="spare")


def train(base: Bundle, pairs: PairList, out: Path, training: ClipTraining, threads: int) -> Bundle:
    """The bundle that this training leaves in ``out``."""
    if not (out / BUNDLE).exists():
        problems = Problems(True, click.echo)
        train_clip(
            base, pairs, out, training, Ranks(0, 1, CPU), problems, 0.0, threads, log=click.echo
        )
    return open_bundle(str(out / BUNDLE))


def judge(bundle: Bundle, pairs: PairList, segmented: int, threads: int) -> dict[str, float]:
    """Retrieval shares and the mean DSC of the lesion."""
    embedder = Embedder(ClipEncoder.open(bundle, CPU, rows=64), "squash", threads)
    with Decoders(threads) as decoders:
        models = [("it", embedder)]
        found = retrieve(pairs.pairs, models, partial(load_image, decoders), "fail", click.echo)
    (model,) = found.models
    figures = {
        f"{direction} top-{top}": model.share(direction, top).mean
        for direction in DIRECTIONS
        for top in TOPS
    }
    engine = Engine.open(str(bundle.folder), "cpu", threads=threads)
    scores = [segment(engine, n) for n in range(segmented)]
    return {**figures, "DSC": float(np.mean(scores))}


def segment(engine: Engine, n: int) -> float:
    """DSC of the lesion of one phantom, which may show the other target too."""
    modality = MODALITIES[n % len(MODALITIES)]
    lesion, wanted = LESIONS[modality], TARGETS[modality]
    shown = wanted if n // len(MODALITIES) % 2 else (lesion,)
    phantom = make_phantom(SEGMENT + n, modality, shown)
    rgb = np.repeat((phantom.pixels * 255 + 0.5).astype(np.uint8)[..., None], 3, axis=2)
    found = engine.segment(rgb, {target: PROMPTS[target] for target in wanted})
    return dice(found[lesion].mask, phantom.masks[lesion])


def interval(values: list[float]) -> tuple[float, float]:
    """Mean over seeds and half of its 95 % interval, by Student's t."""
    from scipy.stats import t

    spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    half = float(t.ppf(0.975, max(len(values) - 1, 1))) * spread / math.sqrt(len(values))
    return float(np.mean(values)), half


def known(path: Path, make: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Figures that were written before, or new ones, which then are."""
    if not path.exists():
        write_durable(path, json.dumps(make()).encode())
    return json.loads(path.read_text())


def to_lines(found: dict[str, list[dict[str, float]]], start: dict[str, float]) -> list[str]:
    """A table with a row a loss, and one of paired differences from DHN-NCE."""
    lines = ["| | " + " | ".join(FIGURES) + " |", "| --- |" + " --- |" * len(FIGURES)]
    lines.append("| start | " + " | ".join(f"{start[name]:.3f}" for name in FIGURES) + " |")
    for loss, runs in found.items():
        cells = [interval([run[name] for run in runs]) for name in FIGURES]
        lines.append(f"| {loss} | " + " | ".join(f"{m:.3f} ± {h:.3f}" for m, h in cells) + " |")
    for loss, runs in list(found.items())[1:]:
        pairs = list(zip(found[LOSSES[0]], runs, strict=True))
        cells = [interval([ours[name] - own[name] for ours, own in pairs]) for name in FIGURES]
        text = " | ".join(f"{m:+.3f} ± {h:.3f}" for m, h in cells)
        lines.append(f"| {LOSSES[0]} − {loss} | {text} |")
    return lines


@click.command()
@click.option("--seeds", default=5, show_default=True)
@click.option("--start-pairs", default=12_000, show_default=True)
@click.option("--start-epochs", default=14, show_default=True)
@click.option("--pairs", default=1_280, show_default=True, help="To fine-tune on.")
@click.option("--epochs", default=4, show_default=True)
@click.option("--test", default=500, show_default=True, help="Pairs to retrieve among.")
@click.option("--segment", "segmented", default=60, show_default=True, help="Phantoms.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--work", required=True, type=Path, help="Folder of phantoms and trainings.")
@click.option("-o", "--out", default="benchmarks/results", show_default=True, type=Path)
def main(
    seeds: int,
    start_pairs: int,
    start_epochs: int,
    pairs: int,
    epochs: int,
    test: int,
    segmented: int,
    threads: int,
    work: Path,
    out: Path,
) -> None:
    """Writes losses.md and losses.json."""
    torch.set_num_threads(threads)
    first = replace(PHANTOM_CLIP, loss="info-nce", epochs=start_epochs)
    own = phantom_pairs(work / "start-pairs", START, start_pairs, threads)
    start = train(open_bundle("phantom"), own, work / "start", first, threads)
    tune = phantom_pairs(work / "pairs", TUNE, pairs, threads)
    tested = phantom_pairs(work / "test", TEST, test, threads)
    again = replace(first, epochs=epochs, learning_rate=2e-4, warmup=20, from_scratch=False)
    found: dict[str, list[dict[str, float]]] = {loss: [] for loss in LOSSES}
    begin = known(work / "start.json", partial(judge, start, tested, segmented, threads))
    for seed in range(seeds):
        for loss in LOSSES:
            folder = work / f"{loss}-{seed}"
            bundle = train(start, tune, folder, replace(again, loss=loss, seed=seed), threads)
            make = partial(judge, bundle, tested, segmented, threads)
            found[loss].append(known(folder / "figures.json", make))
            click.echo(f"{loss}, seed {seed}: {found[loss][-1]}")
    lines = to_lines(found, begin)
    facts: dict[str, Any] = {
        "command": f"python -m medclipsam.benchmarks.losses --seeds {seeds} --start-pairs "
        f"{start_pairs} --start-epochs {start_epochs} --pairs {pairs} --epochs {epochs} --test "
        f"{test} --segment {segmented} --threads {threads} --work WORK",
        "versions": {name: version(name) for name in ("medclipsam", "torch")},
        "start": {"training": asdict(first), **begin},
        "training": asdict(again),
        "results": found,
    }
    head = (
        f"{seeds} seeds a loss, {epochs} epochs on {pairs} pairs, from one trained with InfoNCE "
        f"for {start_epochs} epochs on {start_pairs} others; {test} pairs and {segmented} phantoms "
        "to judge on. Means over seeds ± half a 95 % interval (Student's t).\n"
    )
    click.echo("\n".join(lines))
    write_durable(out / "data" / "losses.json", (json.dumps(facts, indent=2) + "\n").encode())
    write_durable(out / "losses.md", ("\n".join([head, *lines]) + "\n").encode())


if __name__ == "__main__":
    main()
