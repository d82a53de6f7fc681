"""Flags that several commands share, and flags made of the settings that they set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import click
from pydantic.fields import FieldInfo

from medclipsam.engine.config import Backend

if TYPE_CHECKING:
    from medclipsam.train.patients import PatientRule

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
EXISTING = click.Path(exists=True, file_okay=False, path_type=Path)

device_option = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
)
threads_option = click.option(
    "--threads", type=click.IntRange(1), help="CPU threads [default: all]."
)
backend_option = click.option(
    "--backend",
    type=click.Choice(get_args(Backend)),
    default="torch",
    show_default=True,
    help="What runs the models; onnx after 'medclipsam export'.",
)
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


def setting(kind: type, name: str, words: str = "") -> Any:
    """An option for one setting of ``kind``, which owns its default, its bounds and choices."""
    default = next(field.default for field in fields(kind) if field.name == name)
    hint = get_type_hints(kind, include_extras=True)[name]
    more: dict[str, Any] = {"type": _click_type(hint), "default": default, "show_default": True}
    if hint is bool:
        more = {"is_flag": True}
    return click.option(f"--{name.replace('_', '-')}", help=words or None, **more)


def _click_type(hint: Any) -> Any:
    """What click parses: a choice, or a number between the bounds of the setting."""
    if get_origin(hint) is Literal:
        return click.Choice(get_args(hint))
    if get_origin(hint) is not Annotated:
        return hint
    base, *marks = get_args(hint)
    rules = [rule for mark in marks if isinstance(mark, FieldInfo) for rule in mark.metadata]
    gt, ge, lt, le = (
        next((getattr(rule, name) for rule in reversed(rules) if hasattr(rule, name)), None)
        for name in ("gt", "ge", "lt", "le")
    )
    make = click.IntRange if base is int else click.FloatRange
    low, high = gt if ge is None else ge, lt if le is None else le
    return make(low, high, min_open=ge is None, max_open=le is None)


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
