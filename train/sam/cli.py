"""``medclipsam train sam``: SAM fine-tuned on masks."""

from pathlib import Path
from typing import Any, Literal

import click

from medclipsam.engine.cli.options import (
    EXISTING,
    FOLDER,
    device_option,
    report_errors,
    setting,
    threads_option,
)
from medclipsam.train.options import on_error_option, patient_options, read_rule
from medclipsam.train.sam.settings import SamTraining


@click.command()
@click.argument("images", type=EXISTING)
@click.argument("masks", type=EXISTING)
@click.option("-o", "--out", required=True, type=FOLDER, help="New folder for the bundle.")
@click.option("--bundle", required=True, help="Bundle to start from: name or folder.")
@setting(SamTraining, "encoder", "Train the image encoder, too.")
@setting(SamTraining, "from_scratch", "Only the bundle's sizes are taken; trains all of SAM.")
@setting(SamTraining, "components", "Each component of a mask is a mask of its own.")
@on_error_option
@patient_options("an image")
@setting(SamTraining, "val_share", "Share of the patients to judge on; 0 keeps the last weights.")
@setting(SamTraining, "steps", "Of the optimiser.")
@setting(SamTraining, "batch", "Images that are encoded together.")
@setting(SamTraining, "masks_per_image", "Of one image in one step, at most.")
@setting(SamTraining, "accumulate", "Batches of one step.")
@setting(SamTraining, "learning_rate")
@setting(SamTraining, "weight_decay")
@setting(SamTraining, "warmup", "Steps in which the rate rises.")
@setting(SamTraining, "clip_norm", "Largest norm of a gradient.")
@setting(SamTraining, "shrink", "Sides of boxes move in by that.")
@setting(SamTraining, "grow", "Sides of boxes move out by that share of the box.")
@setting(SamTraining, "validate_every", "Steps.")
@setting(SamTraining, "save_every", "Steps that a kill can cost.")
@setting(SamTraining, "precision", "Arithmetic of the encoder.")
@setting(SamTraining, "recompute", "With --encoder: half the memory, more time.")
@setting(SamTraining, "seed")
@device_option
@threads_option
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
    import cv2

    from medclipsam.engine.backends import open_device
    from medclipsam.engine.weights.bundle import open_bundle
    from medclipsam.train.sam.bundle import fine_tune_sam
    from medclipsam.train.threads import use_threads

    training, rule = SamTraining(**settings), read_rule(patients, patient_pattern)
    where, count = open_device(device), use_threads(threads)
    cv2.setNumThreads(1)
    base = open_bundle(bundle)
    made = fine_tune_sam(
        base, images, masks, out, training, click.echo, where, on_error, count, rule
    )
    click.echo(f"wrote {made.folder}")
    click.echo(f"use it: medclipsam run ARCHIVE -p TEXT --bundle {made.folder} -o runs/NAME")
