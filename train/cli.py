"""``medclipsam train``."""

from __future__ import annotations

from pathlib import Path

import click

from medclipsam.engine.errors import ConfigError
from medclipsam.engine.options import report_errors


@click.group()
def train() -> None:
    """Train models.

    \b
    medclipsam train phantom-bundle -o bundles/phantom
    """


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

    \b
    medclipsam train phantom-bundle -o bundles/phantom
    """
    import cv2
    import torch

    from medclipsam.train.clip import ClipTraining
    from medclipsam.train.phantom_bundle import build_phantom_bundle
    from medclipsam.train.sam import SamTraining

    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty; choose a new folder with -o")
    torch.set_num_threads(threads)
    cv2.setNumThreads(1)
    build_phantom_bundle(out, ClipTraining(seed=seed), SamTraining(seed=seed), click.echo)
    click.echo(f"wrote {out}")
