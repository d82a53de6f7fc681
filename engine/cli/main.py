"""The command line: parse, call one library function, translate errors to exit codes.

0 all done · 1 fatal · 2 usage · 3 finished with quarantined items · 130 interrupted.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

import click

from medclipsam.engine.cli.environment import name_variables, unknown_variables
from medclipsam.engine.cli.options import (
    FILE,
    choose_prompts,
    engine_options,
    open_engine,
    prompt_option,
    report_errors,
)
from medclipsam.engine.errors import ConfigError

ELSEWHERE = {
    "run": "medclipsam.engine.cli.run:run",
    "predict": "medclipsam.engine.cli.predict:predict",
    "demo": "medclipsam.train.demo:demo",
    "train": "medclipsam.train.cli:train",
    "export": "medclipsam.export.cli:export",
    "models": "medclipsam.engine.cli.models:models",
    "status": "medclipsam.engine.cli.runs:status",
    "retry": "medclipsam.engine.cli.runs:retry",
    "bench": "medclipsam.benchmarks.bench.cli:bench",
    "collect": "medclipsam.engine.cli.runs:collect",
    "tune": "medclipsam.engine.cli.tune:tune",
    "calibrate": "medclipsam.engine.cli.calibrate:calibrate",
    "evaluate": "medclipsam.engine.cli.evaluate:evaluate",
    "compare": "medclipsam.engine.cli.evaluate:compare",
    "retrieval": "medclipsam.train.retrieval.cli:retrieval",
    "recipe": "medclipsam.train.recipes.cli:recipe",
}


class LazyGroup(click.Group):
    """Loads sub-commands of other folders by name, when they are asked for.

    Every option of theirs has an environment variable, and its help says which.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in ELSEWHERE:
            command = super().get_command(ctx, cmd_name)
        else:
            module, _, name = ELSEWHERE[cmd_name].partition(":")
            command = getattr(importlib.import_module(module), name)
        if command is not None:
            name_variables(command, _prefix(cmd_name))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name and command:
            prefix = _prefix(name)
            for unknown in unknown_variables(name_variables(command, prefix), prefix):
                click.echo(f"{unknown} is set, but is no option of '{name}'", err=True)
        return name, command, rest


def _prefix(command: str) -> str:
    return f"MEDCLIPSAM_{command.upper().replace('-', '_')}"


@click.group(cls=LazyGroup)
@click.version_option(package_name="medclipsam")
def main() -> None:
    """Text prompts and archives of medical images in, segmentation masks out.

    Research use only. Not a medical device.
    """


@main.command()
@click.argument("image", type=FILE)
@prompt_option
@click.option("--frame", default=0, show_default=True, help="Frame or slice of the file.")
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="PNG to write [default: IMAGE-inspect.png in this folder].",
)
@engine_options
@report_errors
def inspect(
    image: Path, prompts: tuple[str, ...], frame: int, out: Path | None, **options: Any
) -> None:
    """One picture of every stage: image, saliency, CRF mask, boxes, final mask.

    \b
    medclipsam inspect scan.png -p "breast ultrasound showing a mass"
    """
    import cv2

    from medclipsam.engine.archive import read_image
    from medclipsam.engine.durable import write_durable
    from medclipsam.engine.outputs.figure import inspection

    wanted = choose_prompts(prompts, options["config"])
    frames = read_image(image).frames
    if not 0 <= frame < len(frames):
        raise ConfigError(f"{image} has frames 0 to {len(frames) - 1}, got --frame {frame}")
    engine = open_engine(options)
    rgb = frames[frame]
    segments = engine.pipeline.segment([rgb], [wanted])[0]
    texts = {label: " | ".join(text) for label, text in wanted.texts.items()}
    figure = inspection(rgb, segments, texts)
    path = out or Path(f"{image.stem}-inspect.png")
    write_durable(path, cv2.imencode(".png", figure[..., ::-1])[1].tobytes())
    for label, segment in segments.items():
        found = segment.reason or f"{int(segment.mask.sum())} pixels"
        click.echo(
            f"{label}: {segment.status}, {found}, confidence {segment.confidence:.2f}, "
            f"CRF {segment.crf}"
        )
    click.echo(str(path))


@main.command()
@report_errors
def doctor() -> None:
    """What works on this machine, what is missing, and what to do about it.

    \b
    medclipsam doctor
    """
    from rich.console import Console

    from medclipsam.engine.cli.doctor import examine, to_table

    checks = examine()
    Console().print(to_table(checks))
    sys.exit(1 if any(check.state == "broken" for check in checks) else 0)
