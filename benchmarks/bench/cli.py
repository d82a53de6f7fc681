"""``medclipsam bench``: the command."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medclipsam.engine.cli.options import (
    FILE,
    FOLDER,
    choose_prompts,
    engine_options,
    prompt_option,
    report_errors,
)
from medclipsam.engine.cli.run import selection_options
from medclipsam.engine.errors import ConfigError

if TYPE_CHECKING:
    from medclipsam.benchmarks.bench.sample import Source
    from medclipsam.engine.archive import Archive
    from medclipsam.engine.types import Prompts

MINUTES, SWEEPING = 4.0, 10.0
FILES = ("bench.json", "bench.md", "bench.png")


@click.command()
@click.argument("archive", required=False)
@prompt_option
@selection_options
@click.option(
    "--positives", type=click.FloatRange(0, 100), default=20.0, show_default=True,
    help="Percent of images with the target: of the phantoms, and for the hours.",
)  # fmt: skip
@click.option("--sweep", is_flag=True, help="Try rows, batches, threads, precisions, backends.")
@click.option(
    "--against", type=click.Choice(["published"]), help="Run the published pipeline beside it."
)
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True),
    help=f"To take, about [default: {MINUTES:g}, or {SWEEPING:g} with --sweep].",
)  # fmt: skip
@click.option(
    "--compare", "pair", nargs=2, type=FILE, metavar="A.json B.json",
    help="Show two results side by side; nothing is measured.",
)  # fmt: skip
@click.option("-o", "--out", type=FOLDER, help="Folder of the result [default: bench-DATE-TIME].")
@engine_options
@report_errors
def bench(
    archive: str | None,
    prompts: tuple[str, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    series: bool,
    positives: float,
    sweep: bool,
    against: str | None,
    minutes: float | None,
    pair: tuple[Path, Path] | None,
    out: Path | None,
    **options: Any,
) -> None:
    """Where a run's time goes on this machine, stage by stage, and what would help.

    Takes a sample of ARCHIVE, which is anything that 'medclipsam run' takes; without one,
    phantoms. Nothing of the archive is changed. Writes bench.json, bench.md and bench.png.

    \b
    medclipsam bench
    medclipsam bench scans/ -p "breast ultrasound showing a mass" --sweep
    medclipsam bench --compare before/bench.json after/bench.json
    """
    from medclipsam.engine.archive import open_archive

    if pair:
        show_pair(pair, out)
        return
    if prompts and not archive:
        raise ConfigError("phantoms are asked for their own targets; give an ARCHIVE beside -p")
    folder = out or Path(time.strftime("bench-%Y%m%d-%H%M%S"))
    if taken := [name for name in FILES if (folder / name).exists()]:
        raise ConfigError(f"{folder / taken[0]} exists; choose another folder with -o")
    budget = 60 * (minutes or (SWEEPING if sweep else MINUTES))
    chosen = open_archive(archive, include, exclude, series, folder) if archive else None
    wanted = choose_prompts(prompts, options["config"]) if archive else None
    facts = measure(chosen, wanted, positives, sweep, bool(against), budget, folder, options)
    write(facts, folder)


def measure(
    archive: Archive | None, prompts: Prompts | None, positives: float, sweep: bool, against: bool,
    budget: float, folder: Path, options: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """All that is asked for, in about ``budget`` seconds; without an archive of phantoms."""
    from medclipsam.benchmarks.bench.against import require_published
    from medclipsam.benchmarks.bench.progress import Steps
    from medclipsam.benchmarks.bench.report import gather
    from medclipsam.engine.cli.options import open_engine

    begun = time.monotonic()
    if against:
        require_published()
    with Steps(budget) as steps:
        steps.tell("opening the models")
        engine = open_engine(options)
        opening = time.monotonic() - begun
        with _scratch(folder) as scratch:
            source = _open_source(archive, scratch, positives)
            facts = gather(
                engine, source, prompts, scratch, begun + budget, steps.tell,
                positives=positives, sweep=sweep, against=against,
            )  # fmt: skip
    command = " ".join(["medclipsam", *map(shlex.quote, sys.argv[1:])])
    return {"command": command, **facts, "open_seconds": round(opening, 2)}


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A place for runs in ``folder``; both go again where nothing came of it."""
    from medclipsam.engine.durable import make_folder

    make_folder(folder)
    try:
        with tempfile.TemporaryDirectory(prefix=".bench-", dir=folder) as scratch:
            yield Path(scratch)
    except BaseException:
        with suppress(OSError):  # it holds something else
            folder.rmdir()
        raise


def _open_source(archive: Archive | None, scratch: Path, positives: float) -> Source:
    from medclipsam.benchmarks.bench.measure import MOST
    from medclipsam.benchmarks.bench.sample import make_source, open_source

    if archive is None:
        return make_source(scratch / "phantoms", round(positives), MOST)
    return open_source(archive)


def write(facts: dict[str, Any], folder: Path) -> None:
    """The files of a result, and its tables on the terminal."""
    from rich.console import Console

    from medclipsam.benchmarks.bench.page import EXPLAINED, conclude, describe, tables, to_markdown
    from medclipsam.benchmarks.bench.picture import draw
    from medclipsam.engine.durable import write_durable

    made = json.dumps(facts, indent=1).encode() + b"\n", to_markdown(facts).encode(), draw(facts)
    for name, data in zip(FILES, made, strict=True):
        write_durable(folder / name, data)
    console = Console()
    for line in describe(facts):
        click.echo(fold(line))
    for table in tables(facts):
        console.print(table.to_rich())
    click.echo(fold(EXPLAINED.replace("*", "")))
    for line in conclude(facts):
        click.echo(fold(line))
    click.echo(f"result: {folder / FILES[1]}, and {FILES[0]} and {FILES[2]} beside it")


def fold(line: str) -> str:
    """For a terminal of 80 columns."""
    return click.wrap_text(line, 79, subsequent_indent="  ")


def show_pair(pair: tuple[Path, Path], out: Path | None) -> None:
    """Two results side by side; with ``out`` as compare.md, too."""
    from rich.console import Console

    from medclipsam.benchmarks.bench.page import compare, describe
    from medclipsam.engine.durable import write_durable

    found = [read(path) for path in pair]
    lines = []
    for name, facts in zip("AB", found, strict=True):
        lines += [f"{name}: {line}" for line in describe(facts)]
    if found[0]["input"] != found[1]["input"]:
        lines.append("the images are not the same: only what stages do alone can be compared")
    table = compare(found[0], found[1], "AB")
    for line in lines:
        click.echo(fold(line))
    Console().print(table.to_rich())
    if out:
        page = "\n".join([*(f"- {line}" for line in lines), "", table.to_markdown(), ""])
        write_durable(out / "compare.md", page.encode())
        click.echo(str(out / "compare.md"))


def read(path: Path) -> dict[str, Any]:
    """A result that was written here or elsewhere.

    Raises:
        ConfigError: the file is no such result.
    """
    from medclipsam.benchmarks.bench.report import KIND

    try:
        facts = json.loads(path.read_text("utf-8"))
        if facts["kind"] != KIND:
            raise ValueError(f"it is of {facts['kind']!r}")
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ConfigError(
            f"expected the bench.json of 'medclipsam bench', got {path}: {exc}"
        ) from exc
    return facts
