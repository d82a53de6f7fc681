"""The command line: parse, call one library function, translate errors to exit codes.

0 all done · 1 fatal · 2 usage · 3 finished with quarantined items · 130 interrupted.
"""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import click

from medclipsam.engine.errors import ConfigError
from medclipsam.engine.options import (
    choose_prompts,
    engine_options,
    open_engine,
    prompt_option,
    report_errors,
)

ELSEWHERE = {
    "demo": "medclipsam.train.demo:demo",
    "train": "medclipsam.train.cli:train",
    "models": "medclipsam.engine.models_cli:models",
    "status": "medclipsam.engine.runs_cli:status",
    "retry": "medclipsam.engine.runs_cli:retry",
    "tune": "medclipsam.engine.tune_cli:tune",
}


class LazyGroup(click.Group):
    """Loads sub-commands of other folders by name, when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        module, _, name = ELSEWHERE[cmd_name].partition(":")
        return getattr(importlib.import_module(module), name)


@click.group(cls=LazyGroup, context_settings={"auto_envvar_prefix": "MEDCLIPSAM"})
@click.version_option(package_name="medclipsam")
def main() -> None:
    """Text prompts and archives of medical images in, segmentation masks out.

    Research use only. Not a medical device.
    """


@main.command()
@click.argument("archive", type=click.Path(exists=True, path_type=Path))
@prompt_option
@click.option(
    "--prompts",
    "table",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV or Parquet with a row per item and prompt, instead of -p.",
)
@click.option("--item-column", default="item", show_default=True)
@click.option("--prompt-column", default="prompt", show_default=True)
@click.option("--label-column", default="label", show_default=True)
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Run folder.",
)
@engine_options
@report_errors
def run(
    archive: Path,
    prompts: tuple[str, ...],
    table: Path | None,
    item_column: str,
    prompt_column: str,
    label_column: str,
    out: Path,
    **options: Any,
) -> None:
    """Label every image of ARCHIVE, a folder or one file, into a run folder.

    Running the same command again resumes.

    \b
    medclipsam run scans/ -p "breast ultrasound showing a mass" -o runs/first
    medclipsam run scans/ -p mass="a mass|a solid mass" -p cyst="a cyst" -o runs/second
    """
    from medclipsam.engine.prompts import read_prompt_table
    from medclipsam.engine.runner import run as run_archive

    if prompts and table:
        raise ConfigError('say what to look for: either -p "TEXT" or --prompts FILE')
    wanted = (
        read_prompt_table(table, item_column, prompt_column, label_column)
        if table
        else choose_prompts(prompts, options["config"])
    )
    engine = open_engine(options)
    with Progress(archive, out) as progress:
        summary = run_archive(engine, archive, wanted, out, progress.update)
    print_summary(summary)
    sys.exit(summary.exit_code)


class Progress:
    """A bar on a terminal, a line now and then elsewhere."""

    def __init__(self, archive: Path, out: Path):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        self._console = Console(stderr=True)
        self._last = 0
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("segment", total=None)
        self._archive, self._out = archive, out

    def __enter__(self) -> Progress:
        from threading import Thread

        self._bar.start()
        if self._console.is_terminal:
            Thread(target=self._count, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _count(self) -> None:
        """The total, found beside the work: listing a large archive takes a while."""
        from medclipsam.engine.archive import Listing

        total = 0
        try:
            for _ in Listing(self._archive, exclude=self._out):
                total += 1
        except ConfigError:
            return
        self._bar.update(self._task, total=total)

    def update(self, finished: int, counts: Counter[str]) -> None:
        text = "segment"
        if counts["quarantined"]:
            text += f" ({counts['quarantined']} quarantined)"
        self._bar.update(self._task, completed=finished, description=text)
        if not self._console.is_terminal and finished >= self._last + 50:
            self._last = finished
            click.echo(f"{finished} items, {text}", err=True)


def print_summary(summary: Any) -> None:
    """What a person wants to know at the end of a run."""
    counts = ", ".join(f"{n} {status}" for status, n in sorted(summary.counts.items())) or "nothing"
    rate = (summary.items - summary.resumed) / max(summary.seconds, 1e-9)
    click.echo(f"{summary.items} items: {counts} ({summary.seconds:.0f} s, {rate:.2f} items/s)")
    if summary.resumed:
        click.echo(f"{summary.resumed} items were finished by an earlier attempt")
    if summary.ignored:
        kinds = ", ".join(f"{suffix or 'no suffix'} {n}" for suffix, n in summary.ignored.items())
        click.echo(f"other files ignored: {kinds}")
    if summary.unmatched:
        some = ", ".join(summary.unmatched[:3])
        click.echo(
            f"prompt rows without an item in the archive: {len(summary.unmatched)} ({some} …)"
        )
    if summary.counts["quarantined"]:
        click.echo("quarantined items and why: see the report or manifest.parquet")
    click.echo(f"masks:  {summary.folder / 'masks'}")
    click.echo(f"report: {summary.report}")


@main.command()
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
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
    from medclipsam.engine.figure import inspection
    from medclipsam.engine.types import ItemRef

    wanted = choose_prompts(prompts, options["config"])
    frames = read_image(image, ItemRef(image.name)).frames
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
@click.argument("predictions", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("truth", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--tolerance",
    default=2.0,
    show_default=True,
    help="Of the surface Dice, in mm where spacing is known, else pixels.",
)
@click.option("--csv", "table", type=click.Path(path_type=Path), help="Write figures per case.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@report_errors
def evaluate(
    predictions: Path, truth: Path, tolerance: float, table: Path | None, as_json: bool
) -> None:
    """Compare masks with true masks: DSC, IoU and NSD with confidence intervals.

    PREDICTIONS is a run folder or a folder LABEL/…; TRUTH has the same shape. Every
    true mask counts; a missing prediction scores 0 and is named.

    \b
    medclipsam evaluate runs/first truth/
    """
    import json

    from rich.console import Console

    from medclipsam.engine import evaluation

    result = evaluation.evaluate(predictions, truth, tolerance)
    if table:
        evaluation.write_cases_csv(result, table)
    if as_json:
        click.echo(json.dumps(evaluation.to_json(result), indent=2))
    else:
        Console().print(evaluation.to_table(result))


@main.command()
@report_errors
def doctor() -> None:
    """What works on this machine, what is missing, and what to do about it.

    \b
    medclipsam doctor
    """
    from rich.console import Console

    from medclipsam.engine.doctor import examine, to_table

    checks = examine()
    Console().print(to_table(checks))
    sys.exit(1 if any(check.state == "broken" for check in checks) else 0)


if __name__ == "__main__":
    main()
