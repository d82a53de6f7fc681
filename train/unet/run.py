"""From a run to a task model: its masks read, split by patient, learned from, written."""

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medclipsam.engine.durable import make_folder
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.unet.model import TaskModel, UnetConfig, write_task_model
from medclipsam.train.patients import split_groups
from medclipsam.train.unet.data import TaskData, gather
from medclipsam.train.unet.fit import Log, UnetTraining, train_unet
from medclipsam.train.unet.masks import RunMasks


def read_samples(run: RunMasks, out: Path, config: UnetConfig, log: Log = print) -> TaskData:
    """Everything that may be learned from a run, which may be closed afterwards.

    Args:
        run: held open, not yet iterated.
        out: new or empty folder of the task model.
        config: labels as in ``run``.
        log: takes a line for each reason why something was left out.

    Raises:
        ConfigError: the folder is not empty, or a label has no mask.
        OutputError: the folder cannot be made, or the disk is full.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is not an empty folder; choose a new one with -o")
    make_folder(out)
    data = gather(run, config.labels, config.image_size, config.fit, out)
    for line in run.report():
        log(line)
    _require_masks(data, config.labels, run)
    return data


def train_task_model(
    run: RunMasks,
    data: TaskData,
    out: Path,
    config: UnetConfig,
    training: UnetTraining,
    device: torch.device,
    log: Log = print,
) -> TaskModel:
    """Split by patient, train, and write a task model.

    Args:
        run: what ``data`` was read from; only its counts are looked at.
        out: empty folder.
        config: mean and std are measured.
        log: takes lines of progress.

    Raises:
        ConfigError: too few patients, or the loss is not finite.
        OutputError: the disk is full.
    """
    split = split_groups(
        data.groups, data.present, config.labels, training.val_share, training.seed
    )
    sides = [_describe(data, part) for part in split]
    for name, side in zip(("to learn from", "to judge on"), sides, strict=True):
        log(f"{name}: {side['samples']} images of {side['patients']} patients")
    log("patients are known by: " + ", ".join(f"{k} {v}" for k, v in sorted(run.told.items())))
    trained = train_unet(data, split, config, training, device, log)
    facts = {
        "run": run.identity,
        "items": run.items,
        "left_out": {reason: len(names) for reason, names in sorted(run.left_out.items())},
        "patients_known_by": dict(run.told),
        "learned_from": sides[0],
        "judged_on": sides[1],
        "min_confidence": run.selection.min_confidence,
        "reviewed": run.selection.review is not None,
        "settings": asdict(training),
        "best_epoch": trained.best.number,
        "epochs": [asdict(epoch) for epoch in trained.epochs],
        "device": device.type,
        "versions": {name: version(name) for name in ("medclipsam", "torch", "monai")},
    }
    return write_task_model(out, trained.config, trained.net, facts)


def _require_masks(data: TaskData, labels: Sequence[str], run: RunMasks) -> None:
    empty = np.array(labels) if not len(data) else np.array(labels)[~data.present.any(0)]
    if len(empty):
        raise ConfigError(
            f"{run.folder} has no mask to learn {', '.join(empty)} from: {run.items} items are "
            "usable, and in none was it found. Look at what was left out, lower "
            "--min-confidence, or choose other labels with --label"
        )


def _describe(data: TaskData, part: np.ndarray) -> dict[str, Any]:
    """Counts of one side of the split."""
    masks = data.present[part].sum(0).tolist()
    return {
        "samples": len(part),
        "patients": len({data.groups[n] for n in part}),
        "known": data.known[part].sum(0).tolist(),
        "masks": masks,
    }
