"""``medclipsam status``, ``retry`` and ``collect``: runs that are there already."""

import json
from pathlib import Path
from typing import Any

import click

from medclipsam.engine.cli.options import (
    EXISTING,
    FILE,
    report_errors,
)
from medclipsam.engine.config import COLLECTIONS
from medclipsam.engine.errors import ConfigError


@click.command()
@click.argument("run", type=EXISTING)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--count/--no-count", default=True, show_default=True, help="Count the archive for an ETA."
)
@report_errors
def status(run: Path, as_json: bool, count: bool) -> None:
    """How far the run in folder RUN has come; may be asked while it goes on.

    \b
    medclipsam status runs/first
    """
    from medclipsam.engine.run.status import read_status

    found = read_status(run, count)
    if as_json:
        click.echo(json.dumps(found.to_json()))
        return
    of = f" of {found.total}" if found.total is not None else ""
    counts = ", ".join(f"{n} {name}" for name, n in sorted(found.counts.items())) or "no row yet"
    click.echo(f"{found.state}: {found.items}{of} items, {counts}")
    if found.rate:
        click.echo(f"{found.rate:.2f} items/s")
    if found.eta and found.state == "running":
        click.echo(f"about {found.eta / 60:.0f} minutes left")
    for reason, items in sorted(found.reasons.items()):
        click.echo(f"quarantined, {reason}: {items}")


@click.command()
@click.argument("run", type=EXISTING)
@click.option("--reason", "reasons", multiple=True, help="Only these reasons [default: all].")
@report_errors
def retry(run: Path, reasons: tuple[str, ...]) -> None:
    """Let the run in folder RUN try its quarantined items again.

    Their rows are removed; the command of the run, given again, takes them up.

    \b
    medclipsam retry runs/first --reason unreadable
    """
    from medclipsam.engine.run.folder import LEDGER, SUCCESS, locked
    from medclipsam.engine.run.ledger import Ledger

    with locked(run):
        if not (run / LEDGER).exists():
            raise ConfigError(f"{run} has no ledger yet; nothing was quarantined")
        with Ledger(run / LEDGER) as ledger:
            there = ledger.reasons()
            if unknown := sorted(set(reasons) - set(there)):
                known = ", ".join(sorted(there)) or "none"
                raise ConfigError(f"no item was quarantined for {unknown[0]!r}; reasons: {known}")
            if there:
                (run / SUCCESS).unlink(missing_ok=True)  # first: it must never vouch for a gap
            count = ledger.forget(reasons or there)
    click.echo(f"{count} items will be tried again; repeat the command of the run")


@click.command()
@click.argument("run", type=EXISTING)
@click.option(
    "--to",
    "formats",
    multiple=True,
    required=True,
    type=click.Choice(COLLECTIONS),
    help="What to make; may be repeated.",
)
@click.option(
    "--review",
    type=FILE,
    help="Decisions saved from the report: rejected and unsure cases are left out.",
)
@click.option(
    "--min-confidence",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Leave out cases with a mask below it, unless it was accepted.",
)
@report_errors
def collect(
    run: Path, formats: tuple[str, ...], review: Path | None, min_confidence: float
) -> None:
    """Make a COCO file or nnU-Net datasets of the masks in run folder RUN.

    A case is left out whole when one of its labels is quarantined, rejected or unsure.

    \b
    medclipsam collect runs/first --to nnunet --review review.json --min-confidence 0.8
    """
    from medclipsam.engine.run.collecting import Selection, collect_run

    print_collected(collect_run(run, formats, Selection(review, min_confidence)))


def print_collected(collected: Any) -> None:
    """Where collections lie, how many cases they hold, and what was left out."""
    for name, path in collected.paths.items():
        click.echo(f"{name}: {collected.taken[name]} cases in {path}")
    if collected.doubtful:
        click.echo(f"made-up geometry: {collected.doubtful} cases of nnunet; see its cases.csv")
    for reason, count in sorted(collected.left_out.items()):
        click.echo(f"left out, {reason}: {count}")
