"""A recipe carried out: from data to a table, going on from what an earlier attempt left.

OUT/runs/BUNDLE/METHOD/zero-shot    run on the images to be judged on
OUT/runs/BUNDLE/METHOD/train        run on the images to learn from
OUT/runs/BUNDLE/METHOD/model        U-Net trained on the latter's masks
OUT/runs/BUNDLE/METHOD/weak         what that U-Net makes of the images to be judged on
OUT/table.md, table.json            all of them against the true masks
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medclipsam.engine.errors import ConfigError, OutputError
from medclipsam.engine.evaluation.board import Entry, score, to_json, to_markdown
from medclipsam.engine.outputs import safe_label
from medclipsam.engine.types import Prompts
from medclipsam.train.recipes.job import Job, Result, write_table
from medclipsam.train.recipes.layout import Layout, examine, require
from medclipsam.train.recipes.pairs import rank, read_captions, tune
from medclipsam.train.recipes.record import build
from medclipsam.train.recipes.view import View, claim, limited, write_view

if TYPE_CHECKING:
    from medclipsam.engine.run.executor import Method
    from medclipsam.engine.unet.model import UnetConfig
    from medclipsam.train.recipes.recipe import Recipe
    from medclipsam.train.unet.fit import UnetTraining

NAMES = {"gscorecam": "gScoreCAM", "gradcam": "GradCAM", "scorecam": "ScoreCAM"}


def carry_out(job: Job) -> Result:
    """Check the data, then do whatever is not done yet, up to the table.

    Raises:
        ConfigError: the data are not laid out as expected, every problem named; or the output
            folder holds other work.
        BundleError, BackendError, OutputError: see ``Engine.open`` and ``runner.run``.
        KeyboardInterrupt: it was asked to stop; the same job goes on.
    """
    recipe = job.recipe
    if recipe.phantoms:
        from medclipsam.train.recipes.phantoms import write_phantoms

        write_phantoms(job.data, recipe.phantoms, job.limit)
    if recipe.task == "segmentation":
        layout = examine(recipe, job.data)
        require(layout.problems, recipe, job.data, job.incomplete)
        return _segment(job, limited(layout, job.limit, recipe.draw.seed))
    pairs, problems = read_captions(recipe, job.data)
    require(problems, recipe, job.data, job.incomplete)
    return tune(job, pairs) if recipe.task == "fine-tuning" else rank(job, pairs)


def _segment(job: Job, layout: Layout) -> Result:
    network, training = _read_settings(job.recipe)
    claim(job.out, _facts(job, layout, network, training))
    view = write_view(layout, job.data, job.out)
    if empty := [split for split, count in view.counts.items() if not count]:
        raise ConfigError(f"no images are left for the split {empty[0]!r}; give more data")
    told = ", ".join(f"{count} images for {split}" for split, count in view.counts.items())
    job.log(f"{job.recipe.title}: {told}")
    work = Segmentation(job, view, network, training)
    entries = [entry for method in job.recipe.methods for entry in work.entries(method)]
    board = score(entries, view.truth)
    text = to_markdown(board) + "".join(f"\n{note}.\n" for note in work.notes)
    facts = {
        "bundles": work.digests,
        "images": view.counts,
        "notes": work.notes,
        **to_json(board),
    }
    return Result(write_table(job, text, facts), work.quarantined, tuple(work.notes))


def _read_settings(recipe: Recipe) -> tuple[UnetConfig, UnetTraining]:
    """Network and training as the recipe describes them.

    Raises:
        ConfigError: names an entry that is wrong.
    """
    from medclipsam.engine.unet.model import UnetConfig
    from medclipsam.train.unet.fit import UnetTraining

    network = {"labels": list(recipe.prompts), **recipe.network}
    if "channels" in network:
        network["strides"] = [2] * (len(network["channels"]) - 1)
    return (
        build(UnetConfig, network, f"{recipe.name}: network"),
        build(UnetTraining, recipe.training, f"{recipe.name}: training"),
    )


def _facts(job: Job, layout: Layout, network: Any, training: Any) -> dict[str, Any]:
    """What must not change between two attempts; bundles and methods may be added."""
    cases = repr([(case.item, case.split) for case in layout.cases])
    return {
        "recipe": job.recipe.name,
        "prompts": job.recipe.prompts,
        "settings": job.recipe.settings,
        "network": asdict(network),
        "training": asdict(training),
        "min_confidence": job.recipe.min_confidence,
        "limit": job.limit,
        "images": hashlib.sha256(cases.encode()).hexdigest(),
    }


@dataclass
class Segmentation:
    """The rows of one table in the making.

    Attributes:
        digests: name of a bundle → digest of its files.
        notes: rows that could not be made, and why.
        quarantined: items and labels of all runs.
    """

    job: Job
    view: View
    network: UnetConfig
    training: UnetTraining
    digests: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    quarantined: int = 0

    @property
    def prompts(self) -> Prompts:
        return Prompts(self.job.recipe.prompts)

    def entries(self, method: str) -> Iterator[Entry]:
        """The rows of one saliency method, made where they are not there yet."""
        for bundle, place in self.job.bundles.items():
            folder = self.job.out / "runs" / safe_label(bundle) / method
            called = f"{NAMES.get(method, method)}, {bundle}"
            self._label_zero_shot(place, bundle, method, folder)
            if "zero-shot" in self.job.stages:
                yield Entry(f"{called}: saliency", folder / "zero-shot", "crf")
                yield Entry(f"{called}: + SAM", folder / "zero-shot")
            if "weak" in self.job.stages and self._learn(called, folder):
                yield Entry(f"{called}: weakly supervised", folder / "weak")

    def _label_zero_shot(self, place: str, bundle: str, method: str, folder: Path) -> None:
        from medclipsam.engine.engine import Engine

        settings = self.job.recipe.settings
        saliency = {**settings.get("saliency", {}), "method": method}
        engine = Engine.open(
            place, self.job.device, self.job.backend, {**settings, "saliency": saliency},
            self.job.threads,
        )  # fmt: skip
        self.digests[bundle] = engine.bundle.digest
        if "zero-shot" in self.job.stages:
            outputs = ("saliency", "crf")
            self._label(engine, self.view.test, self.prompts, folder / "zero-shot", outputs)
        if "weak" in self.job.stages:
            self._label(engine, self.view.train, self.prompts, folder / "train", ())

    def _label(
        self,
        labeller: Method,
        images: Path,
        prompts: Prompts,
        out: Path,
        outputs: tuple[str, ...],
    ) -> None:
        from medclipsam.engine.archive import open_archive
        from medclipsam.engine.cli.run import Progress
        from medclipsam.engine.cli.stopping import stop_on_signals
        from medclipsam.engine.run.runner import RunOptions, run

        archive = open_archive(images, avoid=out)
        with Progress(archive) as progress, stop_on_signals(self.job.log) as stop:
            options = RunOptions(outputs=outputs)
            summary = run(labeller, archive, prompts, out, options, progress.update, stop)
        if summary.interrupted:
            raise KeyboardInterrupt
        counts = ", ".join(f"{n} {status}" for status, n in sorted(summary.counts.items()))
        self.job.log(f"{out}: {summary.items} items, {summary.resumed} of them before: {counts}")
        self.quarantined += summary.counts["quarantined"]

    def _learn(self, called: str, folder: Path) -> bool:
        """Train on zero-shot masks and predict; False where they do not suffice, with a note."""
        from medclipsam.engine.unet.model import is_task_model
        from medclipsam.engine.unet.predictor import Predictor

        if not is_task_model(folder / "model"):
            try:
                self._train(folder)
            except ConfigError as exc:
                self.notes.append(f"{called}: no weakly supervised row: {exc}")
                self.job.log(self.notes[-1])
                return False
        job = self.job
        predictor = Predictor.open(folder / "model", job.device, threads=job.threads)
        self._label(predictor, self.view.test, predictor.prompts, folder / "weak", ("saliency",))
        return True

    def _train(self, folder: Path) -> None:
        import torch

        from medclipsam.engine.backends import open_device
        from medclipsam.engine.run.collecting import Selection
        from medclipsam.train.patients import PatientRule
        from medclipsam.train.unet.masks import open_run_masks
        from medclipsam.train.unet.run import read_samples, train_task_model

        job, out = self.job, folder / "model"
        device = open_device(job.device)
        torch.set_num_threads(job.threads or len(os.sched_getaffinity(0)))
        _clear(out)
        selection = Selection(None, job.recipe.min_confidence)
        rule = PatientRule(self.view.patients)
        with open_run_masks(folder / "train", self.prompts.labels, selection, rule) as masks:
            data = read_samples(masks, out, self.network, job.log)
        train_task_model(masks, data, out, self.network, self.training, device, job.log)


def _clear(folder: Path) -> None:
    """Remove what a killed training left."""
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as exc:
        raise OutputError(f"cannot remove the unfinished model {folder}: {exc.strerror}") from exc
