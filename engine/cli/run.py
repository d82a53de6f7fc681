"""``medclipsam run``: an archive into a run folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

import click

from medclipsam.engine.cli.environment import is_flag
from medclipsam.engine.cli.options import (
    FILE,
    FOLDER,
    SIZE,
    choose_prompts,
    engine_options,
    open_engine,
    prompt_option,
    report_errors,
)
from medclipsam.engine.cli.runs import print_collected
from medclipsam.engine.config import COLLECTIONS, FORMATS, MEMORY, Geometry
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.run.progress import Progress, say, unheard

if TYPE_CHECKING:
    from medclipsam.engine.archive import Archive
    from medclipsam.engine.prompts import PromptTable
    from medclipsam.engine.run.device.executor import Method
    from medclipsam.engine.run.runner import RunSummary
    from medclipsam.engine.types import Prompts


def selection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say which items of an archive are meant."""
    options = [
        click.option(
            "--include", multiple=True, metavar="GLOB", help="Only items whose path matches."
        ),
        click.option(
            "--exclude", multiple=True, metavar="GLOB", help="No items whose path matches."
        ),
        click.option(
            "--series", is_flag=True, help="A DICOM series is one item, not each of its files."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def archive_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of every command that takes an archive into a run folder."""
    options: list[Callable[..., Any]] = [
        click.option(
            "-o",
            "--out",
            required=True,
            type=FOLDER,
            help="Run folder.",
        ),
        selection_options,
        click.option(
            "--output",
            "outputs",
            multiple=True,
            type=click.Choice((*FORMATS, *COLLECTIONS)),
            help="What to write beside the masks; may be repeated.",
        ),
        click.option(
            "--min-confidence",
            type=click.FloatRange(0, 1),
            default=0.0,
            show_default=True,
            help="Quarantine masks below it; they are kept in quarantine/.",
        ),
        click.option(
            "--geometry",
            type=click.Choice(get_args(Geometry)),
            default="warn",
            show_default=True,
            help="Items of unknown spacing or position: count them, or quarantine them.",
        ),
        click.option(
            "--hash-names", is_flag=True, help="No file name of the archive in the run folder."
        ),
        click.option(
            "--memory",
            type=SIZE,
            default=MEMORY,
            show_default="1G",
            help="Bytes that images in flight may hold, such as 512M.",
        ),
        click.option("--max-pixels", type=SIZE, help="Most pixels of one item, all frames [256M]."),
        click.option("--max-bytes", type=SIZE, help="Most bytes of one file, also inflated [2G]."),
        click.option(
            "--max-seconds", type=click.FloatRange(min=0.1), help="To decode one item [120]."
        ),
        click.option(
            "--profile", is_flag=True, help="Print where the time went; write trace.json."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.argument("archive")
@prompt_option
@click.option(
    "--prompts",
    "table",
    type=FILE,
    help="CSV or Parquet with a row per item and prompt, instead of -p.",
)
@click.option("--item-column", default="item", show_default=True)
@click.option("--prompt-column", default="prompt", show_default=True)
@click.option("--label-column", default="label", show_default=True)
@archive_options
@engine_options
@report_errors
def run(
    archive: str,
    prompts: tuple[str, ...],
    table: Path | None,
    item_column: str,
    prompt_column: str,
    label_column: str,
    out: Path,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    series: bool,
    **options: Any,
) -> None:
    """Label every image of ARCHIVE into a run folder.

    ARCHIVE is a folder, an image, a .tar, .tar.gz or .zip, WebDataset shards, a CSV or
    Parquet list of paths, or a URL. Running the same command again resumes.

    \b
    medclipsam run scans/ -p "breast ultrasound showing a mass" -o runs/first
    medclipsam run scans/ -p mass="a mass|a solid mass" -p cyst="a cyst" -o runs/second
    medclipsam run 'shards-{000..099}.tar' -p lungs --output labelmap --output coco -o runs/third
    """
    from medclipsam.engine.archive import open_archive
    from medclipsam.engine.prompts import read_prompt_table

    if prompts and table and is_flag("prompts") != is_flag("table"):
        prompts, table = (prompts, None) if is_flag("prompts") else ((), table)
    if prompts and table:
        raise ConfigError('say what to look for: either -p "TEXT" or --prompts FILE')
    chosen = run_options(options)
    opened = open_archive(archive, include, exclude, series, out, chosen.limits)
    wanted = (
        read_prompt_table(table, item_column, prompt_column, label_column)
        if table
        else choose_prompts(prompts, options["config"])
    )
    label_archive(open_engine(options), opened, wanted, out, chosen)


def label_archive(
    method: Method, archive: Archive, prompts: Prompts | PromptTable, out: Path, options: Any
) -> NoReturn:
    """Run to the end or until a signal, say how it went, and leave with the run's exit code."""
    from medclipsam.engine.cli.stopping import stop_on_signals
    from medclipsam.engine.run.runner import run as run_archive

    with Progress(archive) as progress, stop_on_signals(partial(say, err=True)) as stop:
        summary = run_archive(method, archive, prompts, out, options, progress.update, stop)
    with unheard():
        print_summary(summary)
        if options.trace:
            print_profile(summary)
    sys.exit(summary.exit_code)


def run_options(options: dict[str, Any]) -> Any:
    """``RunOptions`` of the flags."""
    from medclipsam.engine.archive import Limits
    from medclipsam.engine.run.runner import RunOptions

    names = ("max_pixels", "max_bytes", "max_seconds")
    limits = Limits(**{name: options[name] for name in names if options[name] is not None})
    return RunOptions(
        outputs=tuple(dict.fromkeys(options["outputs"])),
        min_confidence=options["min_confidence"],
        hash_names=options["hash_names"],
        memory=options["memory"],
        trace=options["profile"],
        limits=limits,
        geometry=options["geometry"],
    )


def print_summary(summary: RunSummary) -> None:
    """What a person wants to know at the end of a run."""
    counts = ", ".join(f"{n} {status}" for status, n in sorted(summary.counts.items())) or "nothing"
    rate = (summary.items - summary.resumed) / max(summary.seconds, 1e-9)
    click.echo(f"{summary.items} items: {counts} ({summary.seconds:.0f} s, {rate:.2f} items/s)")
    if summary.resumed:
        click.echo(f"{summary.resumed} items were finished by an earlier attempt")
    if summary.silenced:
        click.echo(f"{summary.silenced}; the results are complete without it", err=True)
    if summary.interrupted:
        click.echo("Interrupted. Run the same command again to resume.", err=True)
        return
    if summary.duplicates:
        click.echo(f"{summary.duplicates} items have the bytes of another: see duplicates.csv")
    if summary.doubtful:
        click.echo(
            f"{summary.doubtful} items with made-up geometry: see manifest.parquet, or use "
            "--geometry strict"
        )
    if summary.repeated:
        click.echo(f"{summary.repeated} entries of the archive name an item that was there before")
    if summary.ignored:
        kinds = ", ".join(f"{suffix or 'no suffix'} {n}" for suffix, n in summary.ignored.items())
        click.echo(f"other files ignored: {kinds}")
    if summary.unmatched:
        some = ", ".join(summary.unmatched[:3])
        click.echo(
            f"prompt rows without an item in the archive: {len(summary.unmatched)} ({some} …)"
        )
    if summary.collected:
        print_collected(summary.collected)
    if summary.counts["quarantined"]:
        click.echo("quarantined items and why: see the report or manifest.parquet")
    click.echo(f"masks:  {summary.folder / 'masks'}")
    click.echo(f"report: {summary.report}")


def print_profile(summary: RunSummary) -> None:
    """Where the time of a run went, stage by stage."""
    from rich.console import Console
    from rich.table import Table

    from medclipsam.engine.run.folder import TRACE
    from medclipsam.engine.run.meter import DEVICE

    table = Table("stage", "runs on", "items", "busy s", "occupancy", "waiting", "most")
    for stage in summary.stages:
        where = "device" if stage.stage in DEVICE else f"{stage.workers} threads"
        table.add_row(
            stage.stage,
            where,
            str(stage.items),
            f"{stage.busy:.1f}",
            f"{stage.occupancy:.0%}",
            f"{stage.depth:.1f}",
            str(stage.deepest),
        )
    Console().print(table)
    wall = max(summary.seconds, 1e-9)
    click.echo(
        f"the device was busy {summary.busy / wall:.0%} of the time; the executor waited for it "
        f"{summary.awaited / wall:.0%},\nand for work {summary.idle / wall:.0%}, "
        f"{summary.idle_queued / wall:.0%} with a part of a batch waiting"
    )
    click.echo(f"trace, for ui.perfetto.dev: {summary.folder / TRACE}")
