"""Measures results anew, each by the command that it names, and makes the documents of them.

    python -m medclipsam.benchmarks [NAME …]

Run it where nothing else runs, from the root of a checkout.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import click

from medclipsam.benchmarks.figures.generated import RESULTS

WORK = "WORK"  # in the place of a folder that a benchmark keeps things in
PYTHON = "python"


@click.command()
@click.argument("names", nargs=-1)
@click.option("--list", "listing", is_flag=True, help="Say what there is; measure nothing.")
@click.option(
    "--work", type=click.Path(file_okay=False, path_type=Path), default="benchmarks-work",
    show_default=True, help="Folder of what benchmarks keep, such as trainings.",
)  # fmt: skip
def main(names: tuple[str, ...], listing: bool, work: Path) -> None:
    """Measure the results NAMES anew, by default all; then make figures."""
    known = {path.stem: path for path in sorted(Path(RESULTS).glob("*.json"))}
    if not known:
        raise click.ClickException(f"found no {RESULTS}/*.json; run this in the root of a checkout")
    if unknown := [name for name in names if name not in known]:
        raise click.UsageError(f"no result is called {unknown[0]!r}; there are {', '.join(known)}")
    found = {name: json.loads(known[name].read_text("utf-8")) for name in names or known}
    if listing:
        for name, facts in found.items():
            click.echo(f"{name}: {facts['date']}, {facts['revision']}: {facts['command']}")
        return
    failed = [name for name, facts in found.items() if not measure(name, facts["command"], work)]
    subprocess.run([sys.executable, "-m", "medclipsam.benchmarks.figures"], check=True)
    if failed:
        raise click.ClickException(f"not measured: {', '.join(failed)}; see above")


def measure(name: str, command: str, work: Path) -> bool:
    """Whether the command of one result ended well."""
    words = shlex.split(command)
    if words[0] != PYTHON or "CHECKOUT" in words:
        click.echo(f"{name}: give its paths yourself: {command}", err=True)
        return False
    words = [str(work / name) if word == WORK else word for word in words]
    click.echo(f"{name}: {command}")
    return subprocess.run([sys.executable, *words[1:]]).returncode == 0


if __name__ == "__main__":
    main()
