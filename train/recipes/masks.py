"""Recipes of images with masks: zero-shot and weakly supervised rows, scored together.

OUT/runs/BUNDLE/METHOD/zero-shot    run on the images to be judged on
OUT/runs/BUNDLE/METHOD/train        run on the images to learn from
OUT/runs/BUNDLE/METHOD/model        U-Net trained on the latter's masks
OUT/runs/BUNDLE/METHOD/weak         what that U-Net makes of the images to be judged on
"""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from medclipsam.engine.archive import open_archive
from medclipsam.engine.backends import open_device
from medclipsam.engine.cli.stopping import stop_on_signals
from medclipsam.engine.engine import Engine
from medclipsam.engine.errors import ConfigError, OutputError
from medclipsam.engine.evaluation.board import Entry, score, to_json, to_markdown
from medclipsam.engine.outputs import safe_label
from medclipsam.engine.run.collecting import Selection
from medclipsam.engine.run.progress import Progress
from medclipsam.engine.run.runner import RunOptions, run
from medclipsam.engine.types import Prompts
from medclipsam.engine.unet.model import UnetConfig, is_task_model
from medclipsam.engine.unet.predictor import Predictor
from medclipsam.train.patients import PatientRule
from medclipsam.train.recipes.job import Job, Result
from medclipsam.train.recipes.layout import Layout
from medclipsam.train.recipes.recipe import record
from medclipsam.train.recipes.view import TRUTH, listed, write_view
from medclipsam.train.threads import use_threads
from medclipsam.train.unet.masks import open_run_masks
from medclipsam.train.unet.run import read_samples, train_task_model
from medclipsam.train.unet.settings import UnetTraining

NAMES = {"gscorecam": "gScoreCAM", "gradcam": "GradCAM", "scorecam": "ScoreCAM"}


def compare_masks(job: Job, layout: Layout) -> Result:
    """Every saliency method of the recipe with every bundle, against the true masks.

    Raises:
        ConfigError: a setting is wrong, a side has no images, or a mask cannot be read.
        BundleError, BackendError, OutputError: see ``Engine.open`` and ``runner.run``.
        KeyboardInterrupt: it was asked to stop; the same job goes on.
    """
    recipe = job.recipe
    network = {"labels": list(recipe.prompts), **recipe.network}
    if "channels" in network:
        network["strides"] = [2] * (len(network["channels"]) - 1)
    unet = record(UnetConfig, network, f"{recipe.name}, network")
    training = record(UnetTraining, recipe.training, f"{recipe.name}, training")
    cases = repr([(case.item, case.split) for case in layout.cases])
    job.claim(  # bundles and methods may be added
        prompts=recipe.prompts,
        settings=recipe.settings,
        network=asdict(unet),
        training=asdict(training),
        min_confidence=recipe.min_confidence,
        limit=job.limit,
        images=hashlib.sha256(cases.encode()).hexdigest(),
    )
    write_view(layout, job.data, job.out)
    job.log(f"{recipe.title}: {layout}")
    patients = {listed(item): patient for item, patient in layout.patients.items()}
    rows = Rows(job, unet, training, PatientRule(patients))
    board = score(list(rows), job.out / TRUTH)
    table = job.write_table(
        to_markdown(board),
        bundles=rows.digests,
        images={split: len(layout.of(split)) for split in ("train", "test")},
        notes=rows.notes,
        **to_json(board),
    )
    return Result(table, rows.quarantined)


@dataclass
class Rows:
    """The rows of one table; iterate once, to make those that are not there yet.

    Attributes:
        digests: name of a bundle → digest of its files.
        notes: rows that could not be made, and why.
        quarantined: items and labels of all runs.
    """

    job: Job
    unet: UnetConfig
    training: UnetTraining
    patients: PatientRule
    digests: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    quarantined: int = 0

    def __iter__(self) -> Iterator[Entry]:
        job = self.job
        for method, bundle in product(job.recipe.methods, job.bundles):
            folder = job.out / "runs" / safe_label(bundle) / method
            called = f"{NAMES.get(method, method)}, {bundle}"
            self._label_zero_shot(bundle, method, folder)
            if "zero-shot" in job.stages:
                yield Entry(f"{called}: saliency", folder / "zero-shot", "crf")
                yield Entry(f"{called}: + SAM", folder / "zero-shot")
            if "weak" in job.stages and self._learn(called, folder):
                predictor = Predictor.open(folder / "model", job.device, threads=job.threads)
                self._label(predictor, "test", predictor.prompts, folder / "weak", "saliency")
                yield Entry(f"{called}: weakly supervised", folder / "weak")

    def _label_zero_shot(self, bundle: str, method: str, folder: Path) -> None:
        job, prompts = self.job, Prompts(self.job.recipe.prompts)
        chosen = {"saliency": {**job.recipe.settings.get("saliency", {}), "method": method}}
        settings = {**job.recipe.settings, **chosen}
        engine = Engine.open(job.bundles[bundle], job.device, job.backend, settings, job.threads)
        self.digests[bundle] = engine.bundle.digest
        if "zero-shot" in job.stages:
            self._label(engine, "test", prompts, folder / "zero-shot", "saliency", "crf")
        if "weak" in job.stages:
            self._label(engine, "train", prompts, folder / "train")

    def _label(self, labeller: Any, split: str, prompts: Prompts, out: Path, *outputs: str) -> None:
        job, archive = self.job, open_archive(self.job.out / f"{split}.csv", avoid=out)
        options = RunOptions(outputs=outputs)
        with Progress(archive) as progress, stop_on_signals(job.log) as stop:
            done = run(labeller, archive, prompts, out, options, progress.update, stop)
        if done.interrupted:
            raise KeyboardInterrupt
        counts = ", ".join(f"{n} {status}" for status, n in sorted(done.counts.items()))
        job.log(f"{out}: {done.items} items, {done.resumed} of them before: {counts}")
        self.quarantined += done.counts["quarantined"]

    def _learn(self, called: str, folder: Path) -> bool:
        """Train on zero-shot masks; False where they do not suffice, with a note."""
        if not is_task_model(folder / "model"):
            try:
                self._train(folder / "train", folder / "model")
            except ConfigError as exc:
                self.notes.append(f"{called}: no weakly supervised row: {exc}")
                self.job.log(self.notes[-1])
                return False
        return True

    def _train(self, folder: Path, out: Path) -> None:
        job, device = self.job, open_device(self.job.device)
        use_threads(job.threads)
        try:
            if out.exists():
                shutil.rmtree(out)  # what a killed training left
        except OSError as exc:
            raise OutputError(f"cannot remove the unfinished model {out}: {exc.strerror}") from exc
        selection = Selection(None, job.recipe.min_confidence)
        with open_run_masks(folder, self.unet.labels, selection, self.patients) as masks:
            data = read_samples(masks, out, self.unet, job.log)
        train_task_model(masks, data, out, self.unet, self.training, device, job.log)
