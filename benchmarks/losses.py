"""The four contrastive losses at equal budget, several seeds each, from one common start.

    python -m medclipsam.benchmarks.losses --work WORK

As BiomedCLIP was before its fine-tuning, the start is trained with InfoNCE, on phantoms of its own;
then each loss fine-tunes it on the same further phantoms, once a seed, and is judged on others:
retrieval among all of them, and the masks of the lesion, zero-shot. Interrupted, it goes on.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from medclipsam.benchmarks.measuring.result import RESULTS, open_facts, publish
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

Half = tuple[float, float]  # a mean and half of its interval


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


def interval(values: list[float]) -> Half:
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


def compare(runs: list[dict[str, float]], others: list[dict[str, float]], name: str) -> Half:
    """One figure of some runs minus that of others, paired by seed."""
    return interval([own[name] - other[name] for own, other in zip(runs, others, strict=True)])


def to_markdown(facts: Mapping[str, Any]) -> str:
    """A row a loss, and one for each paired difference from the first."""
    start, found = facts["start"], facts["results"]
    names = [name for name in start if name != "training"]
    first, *others = found
    lines = [
        f"{len(found[first])} seeds a loss, {facts['training']['epochs']} epochs on "
        f"{facts['pairs']} pairs, from one trained with InfoNCE for {start['training']['epochs']} "
        f"epochs on {facts['start_pairs']} others; {facts['test']} pairs and {facts['segmented']} "
        "phantoms to judge on. Means over seeds ± half a 95 % interval (Student's t).\n",
        "| | " + " | ".join(names) + " |",
        "| --- |" + " --- |" * len(names),
        "| start | " + " | ".join(f"{start[name]:.3f}" for name in names) + " |",
    ]
    for loss, runs in found.items():
        cells = [interval([run[name] for run in runs]) for name in names]
        lines.append(f"| {loss} | " + " | ".join(f"{m:.3f} ± {h:.3f}" for m, h in cells) + " |")
    for loss in others:
        cells = [compare(found[first], found[loss], name) for name in names]
        text = " | ".join(f"{m:+.3f} ± {h:.3f}" for m, h in cells)
        lines.append(f"| {first} − {loss} | {text} |")
    return "\n".join(lines) + "\n"


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
@RESULTS
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
    facts = open_facts()
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
    facts |= {"start_pairs": start_pairs, "pairs": pairs, "test": test, "segmented": segmented}
    facts |= {"start": {"training": asdict(first), **begin}, "training": asdict(again)}
    publish(out, "losses", {**facts, "results": found}, to_markdown)


if __name__ == "__main__":
    main()
