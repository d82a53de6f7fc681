"""``medclipsam train unet``: from a run's masks to a task model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medclipsam.engine.cli.options import (
    EXISTING,
    FILE,
    FOLDER,
    device_option,
    report_errors,
    setting,
    threads_option,
)
from medclipsam.engine.config import FitMode
from medclipsam.engine.errors import ConfigError
from medclipsam.train.options import patient_options, read_rule
from medclipsam.train.unet.settings import Augmentation, UnetTraining

if TYPE_CHECKING:
    from medclipsam.engine.unet.model import UnetConfig


@click.command()
@click.argument("run", type=EXISTING)
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
@patient_options("an item")
@setting(UnetTraining, "val_share", "Share of the patients to judge epochs on.")
@click.option("--image-size", default=256, show_default=True, help="Side of the square input.")
@click.option(
    "--fit", type=click.Choice(["pad", "squash"]), default="pad", show_default=True,
    help="How an image enters the square.",
)  # fmt: skip
@click.option("--channels", default="16,32,64,128,256", show_default=True, help="Of each level.")
@setting(UnetTraining, "epochs")
@setting(UnetTraining, "batch")
@setting(UnetTraining, "learning_rate")
@setting(UnetTraining, "weight_decay")
@click.option("--flip", is_flag=True, help="Mirror pictures left and right, at random.")
@click.option(
    "--elastic",
    type=click.FloatRange(0, 0.5),
    default=0.0,
    show_default=True,
    help="Largest random bend, as a share of the side.",
)
@setting(UnetTraining, "seed")
@device_option
@threads_option
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
    device: str,
    threads: int | None,
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
    import cv2

    from medclipsam.engine.backends import open_device
    from medclipsam.engine.run.collecting import Selection
    from medclipsam.train.threads import use_threads
    from medclipsam.train.unet.masks import open_run_masks
    from medclipsam.train.unet.run import read_samples, train_task_model

    where, rule = open_device(device), read_rule(patients, patient_pattern)
    use_threads(threads)
    cv2.setNumThreads(1)
    selection = Selection(review, min_confidence)
    with open_run_masks(run, labels, selection, rule, archive) as masks:
        config, training = _read_settings(masks.labels, **options)
        data = read_samples(masks, out, config, click.echo)
    model = train_task_model(masks, data, out, config, training, where, click.echo)
    click.echo(f"wrote {model.folder}: {', '.join(model.config.labels)}")
    click.echo(f"use it: medclipsam predict IMAGES --model {model.folder} -o runs/NAME")


def _read_settings(
    labels: tuple[str, ...],
    image_size: int,
    fit: FitMode,
    channels: str,
    weight_by_confidence: bool,
    flip: bool,
    elastic: float,
    **training: Any,
) -> tuple[UnetConfig, UnetTraining]:
    """Network and training as the flags describe them.

    Raises:
        ConfigError: values that do not go together.
    """
    from medclipsam.engine.unet.model import UnetConfig

    try:
        levels = tuple(int(number) for number in channels.split(","))
    except ValueError as exc:
        raise ConfigError(f"--channels takes numbers such as 16,32,64, got {channels!r}") from exc
    config = UnetConfig(
        labels, image_size=image_size, fit=fit, channels=levels, strides=(2,) * (len(levels) - 1)
    )
    changes = Augmentation(elastic=elastic, flip=flip)
    return config, UnetTraining(
        by_confidence=weight_by_confidence, augmentation=changes, **training
    )
