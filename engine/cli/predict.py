"""``medclipsam predict``: an archive into a run folder, by a task model."""

from pathlib import Path
from typing import Any, get_args

import click

from medclipsam.engine.cli.options import (
    EXISTING,
    device_option,
    report_errors,
    threads_option,
)
from medclipsam.engine.cli.run import archive_options, label_archive, run_options
from medclipsam.engine.config import Arithmetic
from medclipsam.engine.errors import ConfigError


@click.command()
@click.argument("archive")
@click.option(
    "--model",
    required=True,
    type=EXISTING,
    help="Folder of a task model, from 'medclipsam train unet'.",
)
@archive_options
@device_option
@click.option(
    "--backend",
    type=click.Choice(["torch", "onnx"]),
    default="torch",
    show_default=True,
    help="What runs the network; onnx after 'medclipsam export'.",
)
@click.option(
    "--precision",
    type=click.Choice(get_args(Arithmetic)),
    default="fp32",
    show_default=True,
    help="Arithmetic of the network.",
)
@threads_option
@click.option(
    "--batch", type=click.IntRange(1), default=4, show_default=True, help="Images per call."
)
@report_errors
def predict(
    archive: str,
    model: Path,
    out: Path,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    series: bool,
    device: str,
    backend: str,
    precision: str,
    threads: int | None,
    batch: int,
    **options: Any,
) -> None:
    """Label every image of ARCHIVE with a task model into a run folder.

    ARCHIVE and the run folder are those of 'medclipsam run'. Running the same command again
    resumes. '--output saliency' writes the probabilities.

    \b
    medclipsam predict scans/ --model models/masses -o runs/masses
    medclipsam predict ct/ --series --model models/nodules --output dicom-seg -o runs/nodules
    """
    from medclipsam.engine.archive import open_archive
    from medclipsam.engine.unet.predictor import Predictor

    chosen = run_options(options)
    if "crf" in chosen.outputs:
        raise ConfigError("a task model has no CRF; leave --output crf out")
    opened = open_archive(archive, include, exclude, series, out, chosen.limits)
    predictor = Predictor.open(model, device, backend, precision, threads, batch)
    label_archive(predictor, opened, predictor.prompts, out, chosen)
