"""Whether a U-Net trained on zero-shot masks is better than these masks.

    python -m medclipsam.benchmarks.weak

Per saliency method and modality: zero-shot masks of the lesion on phantoms to learn from, of
which a quarter each shows the lesion, both targets, the other and none; a residual U-Net trained
on these masks alone; then both judged on further phantoms that show the lesion, paired. True
masks are used for judging only. Interrupted, it goes on where it stopped.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import torch

from medclipsam.benchmarks.measuring.result import RESULTS, open_facts, publish
from medclipsam.engine.durable import write_durable
from medclipsam.engine.engine import Engine
from medclipsam.engine.evaluation.difference import Comparison, compare
from medclipsam.engine.evaluation.evaluate import Case, Evaluation, evaluate
from medclipsam.engine.evaluation.interval import Interval
from medclipsam.engine.run.collecting import Selection
from medclipsam.engine.unet.model import UnetConfig, is_task_model
from medclipsam.engine.unet.predictor import Predictor
from medclipsam.train.patients import PatientRule
from medclipsam.train.phantoms.phantoms import LESIONS, MODALITIES, PROMPTS, TARGETS, make_phantom
from medclipsam.train.unet.fit import UnetTraining
from medclipsam.train.unet.masks import open_run_masks
from medclipsam.train.unet.run import read_samples, train_task_model

LEARN, TEST = 4_000_000, 4_500_000  # first seeds; none is trained on elsewhere
CPU = torch.device("cpu")
OVERLAPS = ("dice", "iou", "nsd")  # figures that have a value wherever there is a true mask


def write_scans(folder: Path, modality: str, first: int, kinds: list[tuple[str, ...]]) -> None:
    """``images/`` and, of the lesion, ``truth/LESION/``; a phantom per entry of ``kinds``."""
    lesion = LESIONS[modality]
    for n, targets in enumerate(kinds):
        phantom = make_phantom(first + n, modality, targets)
        grey = (phantom.pixels * 255 + 0.5).astype(np.uint8)
        _write(folder / "images" / f"{n:04d}.png", grey)
        mask = phantom.masks.get(lesion, np.zeros(grey.shape, bool))
        _write(folder / "truth" / lesion / f"{n:04d}.png", mask.astype(np.uint8) * 255)


def _write(path: Path, pixels: np.ndarray) -> None:
    write_durable(path, cv2.imencode(".png", pixels)[1].tobytes())


def measure(
    modality: str, scans: Path, work: Path, training: UnetTraining, engine: Engine
) -> tuple[Evaluation, Evaluation]:
    """Test figures of the U-Net and of zero-shot masks."""
    prompts = {target: PROMPTS[target] for target in TARGETS[modality]}
    for part in ("learn", "test"):
        engine.run(scans / part / "images", prompts, work / f"zero-{part}")
    lesion, model = LESIONS[modality], work / "model"
    if not is_task_model(model):
        config = UnetConfig((lesion,), image_size=128, fit="squash")
        with open_run_masks(
            work / "zero-learn", (lesion,), Selection(), PatientRule({}, None), ""
        ) as masks:
            data = read_samples(masks, model, config, click.echo)
        train_task_model(masks, data, model, config, training, CPU, click.echo)
    predictor = Predictor.open(model, "cpu", threads=engine.threads)
    predictor.run(scans / "test" / "images", work / "unet-test")
    truth = scans / "test" / "truth"
    found = [evaluate(work / name, truth) for name in ("unet-test", "zero-test")]
    return found[0], found[1]


def measure_all(work: Path, training: UnetTraining, engine: Engine) -> Comparison:
    """The U-Net's figures beside those of zero-shot masks, over all modalities."""
    ours: list[Case] = []
    theirs: list[Case] = []
    for modality in MODALITIES:
        out = work / engine.config.saliency.method / modality
        unet, zero_shot = measure(modality, work / modality, out, training, engine)
        ours += unet.cases
        theirs += zero_shot.cases
    tolerance = unet.tolerance
    return compare(Evaluation(tuple(ours), tolerance), Evaluation(tuple(theirs), tolerance))


@click.command()
@click.option("--learn", default=360, show_default=True, help="Phantoms to learn from.")
@click.option("--test", default=100, show_default=True, help="Phantoms to judge on.")
@click.option("--epochs", default=40, show_default=True)
@click.option("--methods", default="contrastcam,gscorecam", show_default=True, help="Saliency.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--work", required=True, type=Path, help="Folder of scans, runs and models.")
@RESULTS
def main(
    learn: int, test: int, epochs: int, methods: str, threads: int, work: Path, out: Path
) -> None:
    """Writes weak.md and weak.json."""
    facts = open_facts(("monai",))
    training = UnetTraining(epochs=epochs)
    for modality in MODALITIES:
        a, b = TARGETS[modality]
        kinds: list[tuple[str, ...]] = [(a,), (a, b), (b,), ()]
        scans = work / modality
        write_scans(scans / "learn", modality, LEARN, [kinds[n % 4] for n in range(learn)])
        write_scans(scans / "test", modality, TEST, [kinds[n % 2] for n in range(test)])
    found = {}
    for method in methods.split(","):
        settings = {"saliency": {"method": method}}
        engine = Engine.open("phantom", "cpu", settings=settings, threads=threads)
        found[method] = to_rows(measure_all(work, training, engine))
    facts |= {"bundle": engine.bundle.digest, "learn": learn, "test": test}
    facts |= {"training": asdict(training), "results": found}
    publish(out, "weak", facts, to_markdown)


def to_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Plain values; what is undefined is null."""
    text = json.dumps([asdict(row) for row in comparison.rows])
    return json.loads(text, parse_constant=lambda _: None)


def to_markdown(facts: Mapping[str, Any]) -> str:
    """A row for each method, lesion and figure of overlap."""
    lines = [
        f"Per modality {facts['learn']} phantoms to learn from, {facts['test']} to judge on, "
        f"{facts['training']['epochs']} epochs.\n",
        "| saliency | lesion | figure | n | zero-shot | U-Net | difference | p |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for method, rows in facts["results"].items():
        for row in (row for row in rows if row["figure"] in OVERLAPS):
            cells = [method, row["label"], row["figure"], row["n"], f"{row['second']:.3f}"]
            gap: dict[str, Any] = row["difference"]
            gap = {name: math.nan if value is None else value for name, value in gap.items()}
            p = "–" if row["p"] is None else f"{row['p']:.2g}"
            cells += [f"{row['first']:.3f}", Interval(**gap).show(3, signed=True), p]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
