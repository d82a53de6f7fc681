"""``medclipsam calibrate``: when a target is absent, from images that show it and that do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medclipsam.engine.cli.options import (
    FILE,
    choose_prompts,
    engine_options,
    open_engine,
    prompt_option,
    read_settings,
    report_errors,
)
from medclipsam.engine.errors import ConfigError

if TYPE_CHECKING:
    from medclipsam.engine.tuning.calibrate import Calibration, Row
    from medclipsam.engine.tuning.evidence import Evidence, Source
    from medclipsam.engine.types import Prompts

POSITIVES = 0.05  # share of an archive that shows the target, for an example


@click.command()
@click.argument("archives", nargs=-1, required=True, metavar="SHOWN NOT_SHOWN | ARCHIVE")
@prompt_option
@click.option(
    "--table",
    type=FILE,
    help="CSV or Parquet with a row per item of ARCHIVE and a column per label: yes, no or empty.",
)
@click.option("--item-column", default="item", show_default=True)
@click.option("--column", help="Column of the only label [default: called as the label].")
@click.option("--null", "nulls", multiple=True, help="Null prompt to try; may be repeated.")
@click.option(
    "--sensitivity",
    type=float,
    default=0.98,
    show_default=True,
    help="Share of the images with the target that must be kept.",
)
@click.option("--series", is_flag=True, help="A DICOM series is one item, not each of its files.")
@click.option(
    "-o",
    "--out",
    default="calibrated.toml",
    show_default=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="TOML file to write, for --config.",
)
@engine_options
@report_errors
def calibrate(
    archives: tuple[str, ...],
    prompts: tuple[str, ...],
    table: Path | None,
    item_column: str,
    column: str | None,
    nulls: tuple[str, ...],
    sensitivity: float,
    series: bool,
    out: Path,
    **options: Any,
) -> None:
    """Find when a target is absent, from images known to show it or not; no masks needed.

    Either all images of the archive SHOWN show it and none of NOT_SHOWN does, or a table says
    it of each item of ARCHIVE. Chooses null prompts, among them --null, and the threshold of
    contrast that keeps the wanted share of the images with the target and skips the most
    without it. Figures are those of images that did not choose.

    \b
    medclipsam calibrate with/ without/ -p "breast ultrasound showing a mass" -o mine.toml
    medclipsam calibrate scans/ --table labels.csv -p mass="a mass" -p cyst="a cyst" -o two.toml
    medclipsam calibrate with/ without/ -p "a nodule" --null "a normal chest x-ray"
    """
    import tomli_w
    from rich.console import Console

    from medclipsam.engine.durable import write_durable
    from medclipsam.engine.tuning import calibrate as choice
    from medclipsam.engine.tuning import evidence as seen

    if out.exists():
        raise ConfigError(f"{out} exists; remove it or choose another file with -o")
    wanted = choose_prompts(prompts, options["config"])
    settings = read_settings(options)
    sources = _open_sources(archives, wanted, table, item_column, column, series)
    choice.check_counts(seen.count_answers(sources, wanted.labels), sensitivity)
    engine = open_engine(options)
    candidates = seen.find_candidates(engine.pipeline, wanted, nulls)
    known = sum(bool(answers) for source in sources for answers in source.answers.values())
    with _progress(known) as observer:
        evidence = seen.gather(
            engine.pipeline, sources, wanted, candidates, engine.threads, observer
        )
    for item, why in evidence.unreadable:
        click.echo(f"left out: {item}: {why}", err=True)
    in_use = [n for n, text in enumerate(candidates) if text in engine.config.null_prompts]
    found = choice.calibrate(evidence, sensitivity, in_use)
    chosen = [candidates[n] for n in found.nulls]
    settings |= {"null_prompts": chosen, "presence": found.threshold}
    settings["prompts"] = {label: list(texts) for label, texts in wanted.texts.items()}
    console = Console(highlight=False)
    console.print(_say_images(evidence), markup=False)
    console.print(f"null prompts, {len(chosen)} of {len(candidates)} tried:")
    for null in chosen:
        console.print(f"  {null}", markup=False)
    console.print(to_table(found))
    for row in found.chosen:
        console.print(_say_row(row, found.auc[row.label]), markup=False)
    if engine.config.saliency.method == "contrastcam" and found.nulls != tuple(in_use):
        click.echo("contrastcam draws with these null prompts, too: look at some masks again")
    write_durable(out, tomli_w.dumps(settings).encode())
    bundle = "" if options["bundle"] == "phantom" else f" --bundle {options['bundle']}"
    click.echo(f"settings: {out}")
    click.echo(f"use them: medclipsam run ARCHIVE --config {out}{bundle} -o RUN")


def _open_sources(
    archives: tuple[str, ...],
    prompts: Prompts,
    table: Path | None,
    item_column: str,
    column: str | None,
    series: bool,
) -> list[Source]:
    """The archives with what is known of their items."""
    from medclipsam.engine.archive import open_archive
    from medclipsam.engine.tuning.evidence import match_table, pair_archives

    labels = prompts.labels
    if len(archives) != (1 if table else 2):
        raise ConfigError(
            "expected two archives, of images with the target and of images without it, or one "
            f"archive and --table FILE; got {len(archives)} archives and "
            f"{table or 'no table'}"
        )
    opened = [open_archive(archive, series=series) for archive in archives]
    if column and not (table and len(labels) == 1):
        raise ConfigError(
            "--column names the column of one label in --table; with several labels, call the "
            f"columns as the labels: {', '.join(labels)}"
        )
    if table:
        columns = {label: column or label for label in labels}
        return [match_table(opened[0], table, columns, item_column)]
    if len(labels) > 1:
        raise ConfigError(
            f"two archives say whether one target is shown, and there are {len(labels)} labels: "
            f"{', '.join(labels)}; use one archive and --table"
        )
    return pair_archives(opened[0], opened[1], labels[0])


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar of items on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = ("encode_image", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda finished: bar.update(task, completed=finished)


def _say_images(evidence: Evidence) -> str:
    """How many images say what."""
    text = f"{len(evidence.shown)} images"
    if evidence.unreadable:
        text += f", {len(evidence.unreadable)} more unreadable"
    if evidence.repeated:
        text += f", {evidence.repeated} more with the bytes of another"
    for label, (shown, absent) in evidence.counts.items():
        text += f"\n{label}: {shown} with it, {absent} without"
    return text


def _say_row(row: Row, auc: float) -> str:
    """The figures of a label at the wanted sensitivity, in words."""
    return (
        f"{row.label}: keeps {row.kept} of {row.shown} images with it, {row.found}; of others, "
        f"as few as {100 * row.found.low:.1f} % may be kept. Skips {row.skipped} of {row.absent} "
        f"images without it, {row.saved}. AUC {auc:.3f}"
    )


def _show_level(sensitivity: float) -> str:
    """Two decimals, or more where it has more."""
    return max(f"{sensitivity:.2f}", f"{sensitivity:g}", key=len)


def to_table(found: Calibration) -> Any:
    """A row a label and sensitivity; the wanted one is marked."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title="Presence",
        caption=f"judged on images that did not choose; wanted is {found.sensitivity:g}",
    )
    labels = len(found.auc)
    table.add_column("sensitivity", justify="right")
    table.add_column("threshold", justify="right")
    if labels > 1:
        table.add_column("label")
    for name in ("kept", "skipped without it", f"skipped, {100 * POSITIVES:g} % with it"):
        table.add_column(name, justify="right")
    for n, row in enumerate(found.rows):
        first, last = n % labels == 0, n % labels == labels - 1
        table.add_row(
            *((_show_level(row.sensitivity), f"{row.threshold:.5f}") if first else ("", "")),
            *((escape(row.label),) if labels > 1 else ()),
            *(f"{n:.3f}" for n in (row.found.mean, row.saved.mean, row.skipped_of(POSITIVES))),
            style="bold" if row.sensitivity == found.sensitivity else "",
            end_section=labels > 1 and last,
        )
    return table
