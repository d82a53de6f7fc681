"""Whether a U-Net trained on zero-shot masks is better than these masks.

    python -m medclipsam.benchmarks.weak

Per saliency method and modality: zero-shot masks of the lesion on phantoms to learn from, of
which a quarter each shows the lesion, both targets, the other and none; a residual U-Net trained
on these masks alone; then both judged on further phantoms that show the lesion, paired. True
masks are used for judging only. Interrupted, it goes on where it stopped.
"""

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import click
import cv2
import numpy as np
import torch

from medclipsam.engine.durable import write_durable
from medclipsam.engine.engine import Engine
from medclipsam.engine.evaluation.difference import Comparison, Difference, compare
from medclipsam.engine.evaluation.evaluate import Case, Evaluation, evaluate
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
@click.option("-o", "--out", default="benchmarks/results", show_default=True, type=Path)
def main(
    learn: int, test: int, epochs: int, methods: str, threads: int, work: Path, out: Path
) -> None:
    """Writes weak.md and weak.json."""
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
        found[method] = measure_all(work, training, engine)
    lines = [
        f"Per modality {learn} phantoms to learn from, {test} to judge on, {epochs} epochs.\n",
        "| saliency | lesion | figure | n | zero-shot | U-Net | difference | p |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(
            _line(method, row)
            for method, comparison in found.items()
            for row in comparison.rows
            if row.figure in ("dice", "iou", "nsd")
        ),
    ]
    click.echo("\n".join(lines))
    facts = {
        "command": f"python -m medclipsam.benchmarks.weak --learn {learn} --test {test} "
        f"--epochs {epochs} --methods {methods} --threads {threads} --work WORK",
        "bundle": engine.bundle.digest,
        "versions": {name: version(name) for name in ("medclipsam", "torch", "monai")},
        "training": asdict(training),
        "results": {name: [asdict(row) for row in each.rows] for name, each in found.items()},
    }
    text = json.dumps(facts, indent=2).replace("NaN", "null")
    write_durable(out / "data" / "weak.json", f"{text}\n".encode())
    write_durable(out / "weak.md", ("\n".join(lines) + "\n").encode())


def _line(method: str, row: Difference) -> str:
    return (
        f"| {method} | {row.label} | {row.figure} | {row.n} | {row.second:.3f} | {row.first:.3f} "
        f"| {row.difference.show(3, signed=True)} | {row.p:.2g} |"
    )


if __name__ == "__main__":
    main()
