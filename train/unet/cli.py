"""``medclipsam train unet``: from a run's masks to a task model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from medclipsam.engine.cli.options import report_errors

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--out", required=True, type=FOLDER, help="New folder for the task model.")
@click.option("--archive", default="", help="Where the run's archive is now, if it was moved.")
@click.option(
    "--label", "labels", multiple=True, help="Only these labels; may be repeated [default: all]."
)
@click.option("--review", type=FILE, help="Decisions saved from the report, see 'collect'.")
@click.option(
    "--min-confidence",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Leave out masks below it, unless they were accepted.",
)
@click.option("--weight-by-confidence", is_flag=True, help="Trust surer masks more.")
@click.option("--patients", type=FILE, help="CSV with the columns item and patient.")
@click.option(
    "--patient-pattern",
    metavar="REGEX",
    help="Found in an item's path; its first group, or all of it, is the patient.",
)
@click.option(
    "--val-share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.2,
    show_default=True,
    help="Share of the patients to judge epochs on.",
)
@click.option("--image-size", default=256, show_default=True, help="Side of the square input.")
@click.option(
    "--fit", type=click.Choice(["pad", "squash"]), default="pad", show_default=True,
    help="How an image enters the square.",
)  # fmt: skip
@click.option("--channels", default="16,32,64,128,256", show_default=True, help="Of each level.")
@click.option("--epochs", type=click.IntRange(1), default=60, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True)
@click.option("--learning-rate", default=1e-3, show_default=True)
@click.option("--weight-decay", default=1e-4, show_default=True)
@click.option("--flip", is_flag=True, help="Mirror pictures left and right, at random.")
@click.option(
    "--elastic",
    type=click.FloatRange(0, 0.5),
    default=0.0,
    show_default=True,
    help="Largest random bend, as a share of the side.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads [default: all].")
@report_errors
def unet(
    run: Path,
    out: Path,
    archive: str,
    labels: tuple[str, ...],
    review: Path | None,
    min_confidence: float,
    patients: Path | None,
    patient_pattern: str | None,
    **options: Any,
) -> None:
    """Train a U-Net for the labels of run folder RUN on the masks that it found.

    Masks that were found and labels that were found absent are learned from; rejected, unsure
    and quarantined ones are not, unless a person accepted them. Images of one patient are
    either learned from or judged on, never both: patients are known by --patients or
    --patient-pattern, else by the PatientID of DICOM files, which is not stored.

    \b
    medclipsam train unet runs/first -o models/masses
    medclipsam train unet runs/first --review review.json --min-confidence 0.5 \\
        --weight-by-confidence --patient-pattern 'patient_(\\d+)' -o models/masses
    """
    import os

    import cv2
    import torch

    from medclipsam.engine.backends import open_device
    from medclipsam.engine.run.collecting import Selection
    from medclipsam.train.patients import PatientRule, compile_pattern, read_patients
    from medclipsam.train.unet.masks import open_run_masks
    from medclipsam.train.unet.run import read_samples, train_task_model

    device = open_device(options["device"])
    torch.set_num_threads(options["threads"] or len(os.sched_getaffinity(0)))
    cv2.setNumThreads(1)
    rule = PatientRule(
        read_patients(patients) if patients else {},
        compile_pattern(patient_pattern) if patient_pattern else None,
    )
    selection = Selection(review, min_confidence)
    with open_run_masks(run, labels, selection, rule, archive) as masks:
        config, training = _read_settings(masks.labels, options)
        data = read_samples(masks, out, config, click.echo)
    model = train_task_model(masks, data, out, config, training, device, click.echo)
    click.echo(f"wrote {model.folder}: {', '.join(model.config.labels)}")
    click.echo(f"use it: medclipsam predict IMAGES --model {model.folder} -o runs/NAME")


def _read_settings(labels: tuple[str, ...], options: dict[str, Any]) -> tuple[Any, Any]:
    """Network and training as the flags describe them.

    Raises:
        ConfigError: values that do not go together.
    """
    from medclipsam.engine.errors import ConfigError
    from medclipsam.engine.unet.model import UnetConfig
    from medclipsam.train.unet.augmentation import Augmentation
    from medclipsam.train.unet.fit import UnetTraining

    try:
        channels = tuple(int(number) for number in options["channels"].split(","))
    except ValueError as exc:
        raise ConfigError(
            f"--channels takes numbers such as 16,32,64, got {options['channels']!r}"
        ) from exc
    config = UnetConfig(
        labels,
        image_size=options["image_size"],
        fit=options["fit"],
        channels=channels,
        strides=(2,) * (len(channels) - 1),
    )
    training = UnetTraining(
        epochs=options["epochs"],
        batch=options["batch"],
        learning_rate=options["learning_rate"],
        weight_decay=options["weight_decay"],
        val_share=options["val_share"],
        by_confidence=options["weight_by_confidence"],
        augmentation=Augmentation(elastic=options["elastic"], flip=options["flip"]),
        seed=options["seed"],
    )
    return config, training
