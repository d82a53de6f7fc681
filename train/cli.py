"""``medclipsam train``."""

from dataclasses import replace
from pathlib import Path

import click

from medclipsam.engine.cli.options import report_errors
from medclipsam.engine.errors import ConfigError
from medclipsam.train.clip.cli import clip
from medclipsam.train.sam.cli import sam
from medclipsam.train.unet.cli import unet


@click.group()
def train() -> None:
    """Train models.

    \b
    medclipsam train phantom-bundle -o bundles/phantom
    """


train.add_command(clip)
train.add_command(sam)
train.add_command(unet)


@train.command(name="phantom-bundle")
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="New folder for the bundle.",
)
@click.option("--seed", default=0, show_default=True, help="Of weights, batches and noise.")
@click.option("--threads", default=2, show_default=True, type=click.IntRange(1))
@report_errors
def phantom_bundle(out: Path, seed: int, threads: int) -> None:
    """Rebuild the bundle that ships with the package, about an hour on two cores.

    Phantoms are drawn, then 'train clip' and 'train sam' run on them. The same command again
    goes on where it stopped.

    \b
    medclipsam train phantom-bundle -o bundles/phantom
    """
    import cv2
    import torch

    from medclipsam.train.phantoms.bundle import PHANTOM_CLIP, PHANTOM_SAM, build_phantom_bundle

    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty; choose a new folder with -o")
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)
    clip, sam = replace(PHANTOM_CLIP, seed=seed), replace(PHANTOM_SAM, seed=seed)
    build_phantom_bundle(out, clip, sam, click.echo, threads)
    click.echo(f"wrote {out}")
