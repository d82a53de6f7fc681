"""``medclipsam evaluate`` and ``compare``: masks against true masks."""

import json
from pathlib import Path
from typing import Literal

import click

from medclipsam.engine.cli.options import (
    EXISTING,
    report_errors,
)

tolerance_option = click.option(
    "--tolerance",
    default=2.0,
    show_default=True,
    help="Of the surface Dice, in mm where spacing is known, else pixels.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


@click.command()
@click.argument("predictions", type=EXISTING)
@click.argument("truth", type=EXISTING)
@click.option("--against", type=EXISTING, help="Other predictions: paired comparison with them.")
@click.option(
    "--part",
    type=click.Choice(["mask", "crf"]),
    default="mask",
    show_default=True,
    help="Masks of a run: the final ones, or the CRF's (needs a run with --output crf).",
)
@tolerance_option
@click.option("--csv", "table", type=click.Path(path_type=Path), help="Write figures per case.")
@json_option
@report_errors
def evaluate(
    predictions: Path,
    truth: Path,
    against: Path | None,
    part: Literal["mask", "crf"],
    tolerance: float,
    table: Path | None,
    as_json: bool,
) -> None:
    """Compare masks with true masks: DSC, IoU, NSD and HD95 with confidence intervals.

    PREDICTIONS is a run folder or a folder LABEL/…; TRUTH has the same shape. Every true
    mask counts; a missing prediction scores 0 and is named. A run made with --output
    saliency is also judged by the AUC of its maps.

    \b
    medclipsam evaluate runs/first truth/
    medclipsam evaluate runs/second truth/ --against runs/first --csv cases.csv
    medclipsam evaluate runs/first truth/ --part crf
    """
    from rich.console import Console

    from medclipsam.engine.evaluation import difference as comparison
    from medclipsam.engine.evaluation import evaluate as evaluation
    from medclipsam.engine.evaluation import table as scoretable

    result = evaluation.evaluate(predictions, truth, tolerance, part)
    other = against and evaluation.evaluate(against, truth, tolerance, part)
    paired = comparison.compare(result, other) if other else None
    if table:
        scoretable.write_cases_csv(result, table)
    if as_json:
        document = scoretable.to_json(result)
        if paired:
            document["against"] = scoretable.comparison_to_json(paired)
        click.echo(json.dumps(document, indent=2))
        return
    Console().print(scoretable.to_table(result))
    if paired:
        Console().print(scoretable.comparison_to_table(paired, tolerance))


@click.command()
@click.argument("predictions", nargs=-1, required=True, metavar="NAME=EXISTING[:crf]...")
@click.option("--truth", type=EXISTING, required=True, help="True masks, as for evaluate.")
@tolerance_option
@click.option(
    "-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="Markdown file to write."
)
@json_option
@report_errors
def compare(
    predictions: tuple[str, ...], truth: Path, tolerance: float, out: Path | None, as_json: bool
) -> None:
    """Compare several predictions with one truth: a line for each, with intervals.

    Each is called NAME and lies in EXISTING, a run folder or a folder LABEL/…; EXISTING:crf
    are the run's masks before SAM. Stages and weights of a method make a table so:

    \b
    medclipsam compare "saliency=runs/a:crf" "+ SAM=runs/a" "U-Net=runs/b" --truth truth/ -o t.md
    """
    from rich.console import Console

    from medclipsam.engine.durable import write_durable
    from medclipsam.engine.evaluation import board as scoreboard

    entries = [scoreboard.parse_entry(text) for text in predictions]
    board = scoreboard.score(entries, truth, tolerance)
    if out:
        write_durable(out, scoreboard.to_markdown(board).encode())
    if as_json:
        click.echo(json.dumps(scoreboard.to_json(board), indent=2))
    else:
        Console().print(scoreboard.to_table(board))
