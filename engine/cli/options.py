"""Options and error handling that commands share."""

import re
import signal
import sys
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import click
from pydantic.fields import FieldInfo

from medclipsam.engine.cli.environment import is_flag
from medclipsam.engine.config import (
    Backend,
    BoxConfig,
    CrfConfig,
    EngineConfig,
    SaliencyConfig,
    merge,
    parse_settings,
    read_toml,
)
from medclipsam.engine.errors import ConfigError, MedclipsamError


def report_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """One clear sentence instead of a traceback for everything raised on purpose."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            return command(*args, **kwargs)
        except ConfigError as exc:
            click.echo(f"Error: {exc}", err=True)
            sys.exit(2)
        except MedclipsamError as exc:
            click.echo(f"Error: {exc}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo("Interrupted. Run the same command again to resume.", err=True)
            sys.exit(130)

    return wrapped


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


class Size(click.ParamType):
    """A number of bytes or pixels, plain or with K, M, G or T for powers of 1024."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", value.strip(), re.IGNORECASE)
        power = "KMGT".index(match[2].upper()) + 1 if match and match[2] else 0
        size = int(float(match[1]) * 1024**power) if match else 0
        if size < 1:
            self.fail(f"{value!r} is no size; write it like 512M or 2G", param, ctx)
        return size


SIZE = Size()
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


def setting_choice(kind: type, name: str) -> click.Choice:
    """The values that a setting of ``kind`` may have."""
    return _click_type(get_type_hints(kind)[name])


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of every command that opens an engine."""
    options = [
        click.option(
            "--bundle", default="phantom", show_default=True, help="Bundle name or folder."
        ),
        device_option,
        backend_option,
        threads_option,
        click.option(
            "--config",
            type=FILE,
            help="TOML file of settings and, in its table prompts, of prompts.",
        ),
        click.option(
            "--saliency",
            type=setting_choice(SaliencyConfig, "method"),
            help="Saliency method [default: the bundle's].",
        ),
        click.option(
            "--precision",
            type=setting_choice(EngineConfig, "precision"),
            help="Arithmetic of the image towers [default: the bundle's, or auto].",
        ),
        click.option(
            "--crf",
            type=setting_choice(CrfConfig, "solver"),
            help="Dense CRF: ours, or the published one [default: the bundle's].",
        ),
        click.option(
            "--boxes",
            type=setting_choice(BoxConfig, "select"),
            help="Components that become boxes [default: the bundle's].",
        ),
        click.option("--top-k", type=click.IntRange(1), help="How many boxes top-k keeps."),
        click.option(
            "--set",
            "pairs",
            multiple=True,
            metavar="NAME=VALUE",
            help="Any setting, such as crf.tau=1.2; may be repeated.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def open_engine(options: dict[str, Any]) -> Any:
    """Open the engine that ``engine_options`` describe."""
    from medclipsam.engine.engine import Engine

    return Engine.open(
        options["bundle"],
        options["device"],
        options["backend"],
        settings=read_settings(options),
        threads=options["threads"],
    )


def read_settings(options: dict[str, Any]) -> dict[str, Any]:
    """What file, environment and flags set over the bundle's defaults, the last one winning."""
    file = read_toml(options["config"]) if options["config"] else {}
    file.pop("prompts", None)
    return _layered(file, *(_chosen(options, flags) for flags in (False, True)))


def _chosen(options: dict[str, Any], flags: bool) -> dict[str, Any]:
    """Settings that come from the command line, or else those from the environment."""
    mine = {name: value for name, value in options.items() if is_flag(name) is flags}
    named: dict[str, Any] = {
        name: mine[name] for name in ("saliency", "precision", "crf") if mine.get(name)
    }
    boxes = {"select": mine.get("boxes"), "k": mine.get("top_k")}
    if boxes := {name: value for name, value in boxes.items() if value is not None}:
        named["boxes"] = boxes
    return _layered(parse_settings(mine.get("pairs", ())), named)


def _layered(*layers: dict[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for layer in layers:
        merge(merged, layer)
    return merged


prompt_option = click.option(
    "-p",
    "--prompt",
    "prompts",
    multiple=True,
    help="TEXT, label=TEXT or label=TEXT|TEXT|… [default: those of --config].",
)


def choose_prompts(flags: tuple[str, ...], config: Path | None) -> Any:
    """Prompts of the flags or, without any, of the table ``prompts`` in the settings file.

    Raises:
        ConfigError: neither names any.
    """
    from medclipsam.engine.prompts import make_prompts, parse_prompts

    table = read_toml(config).get("prompts") if config and not flags else None
    return parse_prompts(flags) if table is None else make_prompts(table)
