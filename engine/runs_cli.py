"""``medclipsam status`` and ``retry``: runs that are there already."""

from __future__ import annotations

import json
from pathlib import Path

import click

from medclipsam.engine.errors import ConfigError
from medclipsam.engine.options import report_errors

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("run", type=FOLDER)
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
    from medclipsam.engine.status import read_status

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
@click.argument("run", type=FOLDER)
@click.option("--reason", "reasons", multiple=True, help="Only these reasons [default: all].")
@report_errors
def retry(run: Path, reasons: tuple[str, ...]) -> None:
    """Let the run in folder RUN try its quarantined items again.

    Their rows are removed; the command of the run, given again, takes them up.

    \b
    medclipsam retry runs/first --reason unreadable
    """
    from medclipsam.engine.ledger import Ledger
    from medclipsam.engine.runfolder import LEDGER, SUCCESS, locked

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
