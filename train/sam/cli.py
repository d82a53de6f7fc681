"""``medclipsam train sam``: SAM fine-tuned on masks."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import click

from medclipsam.engine.cli.options import report_errors
from medclipsam.train.sam.settings import PRECISIONS, SamTraining

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
EXISTING = click.Path(exists=True, file_okay=False, path_type=Path)
DEFAULT = SamTraining()
POSITIVE, SHARE = click.IntRange(1), click.FloatRange(0, 1, max_open=True)


def _setting(name: str, kind: Any, words: str = "") -> Any:
    """An option for one setting of ``SamTraining``, which owns its default."""
    flag = "--" + name.replace("_", "-")
    return click.option(
        flag, type=kind, default=getattr(DEFAULT, name), show_default=True, help=words
    )


@click.command()
@click.argument("images", type=EXISTING)
@click.argument("masks", type=EXISTING)
@click.option("-o", "--out", required=True, type=FOLDER, help="New folder for the bundle.")
@click.option("--bundle", required=True, help="Bundle to start from: name or folder.")
@click.option("--encoder", is_flag=True, help="Train the image encoder, too.")
@click.option(
    "--from-scratch", is_flag=True, help="Only the bundle's sizes are taken; trains all of SAM."
)
@click.option("--components", is_flag=True, help="Each component of a mask is a mask of its own.")
@click.option(
    "--on-error",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="A file that cannot be used ends it, or is left out, named and counted.",
)
@click.option("--patients", type=FILE, help="CSV with the columns item and patient.")
@click.option(
    "--patient-pattern",
    metavar="REGEX",
    help="Found in an image's path; its first group, or all of it, is the patient.",
)
@_setting("val_share", SHARE, "Share of the patients to judge on; 0 keeps the last weights.")
@_setting("steps", POSITIVE, "Of the optimiser.")
@_setting("batch", POSITIVE, "Images that are encoded together.")
@_setting("masks_per_image", POSITIVE, "Of one image in one step, at most.")
@_setting("accumulate", POSITIVE, "Batches of one step.")
@_setting("learning_rate", click.FloatRange(0, 1, True, True))
@_setting("weight_decay", click.FloatRange(0))
@_setting("warmup", click.IntRange(0), "Steps in which the rate rises.")
@_setting("clip_norm", click.FloatRange(0, min_open=True), "Largest norm of a gradient.")
@_setting("shrink", click.FloatRange(0, 0.5, max_open=True), "Sides of boxes move in by that.")
@_setting("grow", click.FloatRange(0), "Sides of boxes move out by that share of the box.")
@_setting("validate_every", POSITIVE, "Steps.")
@_setting("save_every", POSITIVE, "Steps that a kill can cost.")
@_setting("precision", click.Choice(PRECISIONS), "Arithmetic of the encoder.")
@click.option("--recompute", is_flag=True, help="With --encoder: half the memory, more time.")
@_setting("seed", click.IntRange(0))
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--threads", type=POSITIVE, help="CPU threads [default: all].")
@report_errors
def sam(
    images: Path,
    masks: Path,
    out: Path,
    bundle: str,
    on_error: Literal["fail", "skip"],
    patients: Path | None,
    patient_pattern: str | None,
    device: str,
    threads: int | None,
    **settings: Any,
) -> None:
    """Fine-tune the SAM of a bundle on IMAGES whose true masks lie in MASKS/LABEL/….

    Learns to turn the box around a mask, moved at random, into the mask. By default the image
    encoder stays as it is: images are embedded once, kept beside the output folder meanwhile
    (4 MB each for SAM's own sizes), and do not vary in brightness. The weights that are best on
    the images to judge on are kept, in a new bundle with the same CLIP.

    Images of one patient are either learned from or judged on: patients are known by --patients
    or --patient-pattern, else by the PatientID of DICOM files, which is not stored. The same
    command again resumes what was killed.

    \b
    medclipsam train sam images/ masks/ --bundle medsam -o bundles/new
    medclipsam train sam images/ masks/ --bundle medsam -o bundles/new --encoder \\
        --batch 1 --accumulate 8 --precision bf16 --recompute
    """
    import os

    import cv2
    import torch

    from medclipsam.engine.backends import open_device
    from medclipsam.engine.weights.bundle import open_bundle
    from medclipsam.train.patients import PatientRule, compile_pattern, read_patients
    from medclipsam.train.sam.bundle import fine_tune_sam

    training = SamTraining(**{field.name: settings[field.name] for field in fields(SamTraining)})
    rule = PatientRule(
        read_patients(patients) if patients else {},
        compile_pattern(patient_pattern) if patient_pattern else None,
    )
    where, count = open_device(device), threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(count)
    cv2.setNumThreads(1)
    base = open_bundle(bundle)
    made = fine_tune_sam(
        base, images, masks, out, training, click.echo, where, on_error, count, rule
    )
    click.echo(f"wrote {made.folder}")
    click.echo(f"use it: medclipsam run ARCHIVE -p TEXT --bundle {made.folder} -o runs/NAME")
