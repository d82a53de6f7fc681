"""``medclipsam demo``: the whole method on synthetic scans, ending with a report to open."""

import sys
from pathlib import Path
from typing import Any

import click

from medclipsam.engine.cli.options import engine_options, open_engine, report_errors
from medclipsam.engine.errors import ConfigError


@click.command()
@click.option(
    "-o",
    "--out",
    default="demo",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for archive, truth and run.",
)
@click.option(
    "--per-modality", default=8, show_default=True, type=click.IntRange(1, 100), help="Scans each."
)
@engine_options
@report_errors
def demo(out: Path, per_modality: int, **options: Any) -> None:
    """Write synthetic scans, label them from text, compare with the true masks.

    \b
    medclipsam demo
    """
    from rich.console import Console

    from medclipsam.engine.archive import open_archive
    from medclipsam.engine.evaluation.evaluate import evaluate
    from medclipsam.engine.evaluation.table import to_json, to_table
    from medclipsam.engine.prompts import read_prompt_table
    from medclipsam.engine.report.report import write_report
    from medclipsam.engine.run.folder import LEDGER, identify
    from medclipsam.engine.run.ledger import Ledger
    from medclipsam.engine.run.progress import Progress
    from medclipsam.engine.run.runner import describe_run, run
    from medclipsam.train.phantoms.archive import write_phantom_archive

    engine = open_engine(options)
    click.echo(f"writing synthetic scans to {out / 'archive'}")
    written = write_phantom_archive(out, per_modality)
    table = read_prompt_table(written.prompts)
    folder = out / "run"
    archive = open_archive(written.archive, avoid=folder)
    with Progress(archive) as progress:
        summary = run(engine, archive, table, folder, observer=progress.update)
    result = evaluate(folder, written.truth)
    Console().print(to_table(result))
    facts = describe_run(engine, archive, table, summary)
    with Ledger(folder / LEDGER) as ledger:
        scores = to_json(result)
        write_report(folder, ledger.outcomes(), facts, scores, identify(folder))
    counts = ", ".join(f"{n} {status}" for status, n in sorted(summary.counts.items()))
    click.echo(f"{summary.items} items: {counts} ({summary.seconds:.0f} s)")
    click.echo("one file was written corrupt on purpose: it stands in quarantine")
    click.echo(f"open {summary.report.resolve()}")
    if summary.counts["quarantined"] != 1:
        raise ConfigError("expected exactly the one corrupt file in quarantine; see the report")
    sys.exit(0)
