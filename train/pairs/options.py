"""Flags that say where pairs of image and caption are, shared by all commands that read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

LEAST = 20  # as medclipsam.train.pairs.captions says, which takes longer to import


def pair_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --image-column, --caption-column, --images, --min-caption and --on-error."""
    options = [
        click.option("--image-column", default="image", show_default=True),
        click.option("--caption-column", default="caption", show_default=True),
        click.option(
            "--images",
            type=click.Path(exists=True, file_okay=False, path_type=Path),
            help="Folder that image paths are relative to [default: the table's].",
        ),
        click.option(
            "--min-caption",
            "least",
            type=click.IntRange(1),
            default=LEAST,
            show_default=True,
            help="Characters; shorter captions are left out.",
        ),
        click.option(
            "--on-error",
            type=click.Choice(["fail", "skip"]),
            default="fail",
            show_default=True,
            help="What to do with a row that cannot be used.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command
