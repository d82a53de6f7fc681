"""Flags that several trainings share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medclipsam.engine.cli.options import EXISTING, FILE

if TYPE_CHECKING:
    from medclipsam.train.patients import PatientRule

on_error_option = click.option(
    "--on-error",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="A row or file that cannot be used ends it, or is left out, named and counted.",
)


def pair_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --image-column, --caption-column, --images, --min-caption and --on-error."""
    options = [
        click.option("--image-column", default="image", show_default=True),
        click.option("--caption-column", default="caption", show_default=True),
        click.option(
            "--images",
            type=EXISTING,
            help="Folder that image paths are relative to [default: the table's].",
        ),
        click.option(
            "--min-caption",
            "least",
            type=click.IntRange(1),
            default=20,
            show_default=True,
            help="Characters; shorter captions are left out.",
        ),
        on_error_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


def patient_options(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds --patients and --patient-pattern, see ``read_rule``; ``what`` has the paths."""
    table = click.option("--patients", type=FILE, help="CSV with the columns item and patient.")
    pattern = click.option(
        "--patient-pattern",
        metavar="REGEX",
        help=f"Found in {what}'s path; its first group, or all of it, is the patient.",
    )
    return lambda command: table(pattern(command))


def read_rule(patients: Path | None, patient_pattern: str | None) -> PatientRule:
    """Where patients are known from.

    Raises:
        ConfigError: the table cannot be read, or the pattern is no regular expression.
    """
    from medclipsam.train.patients import PatientRule, compile_pattern, read_patients

    return PatientRule(
        read_patients(patients) if patients else {},
        compile_pattern(patient_pattern) if patient_pattern else None,
    )
