"""``medclipsam retrieval``: which bundle finds captions and images best."""

import json
from pathlib import Path
from typing import Any

import click

from medclipsam.engine.cli.options import (
    backend_option,
    device_option,
    report_errors,
    threads_option,
)
from medclipsam.train.options import pair_options


@click.command()
@click.argument("pairs")
@click.option(
    "--bundle",
    "bundles",
    multiple=True,
    default=("phantom",),
    show_default=True,
    help="Bundle name or folder, or NAME=BUNDLE; may be repeated.",
)
@pair_options
@click.option(
    "--pool",
    type=click.IntRange(2),
    help="Retrieve among so many candidates drawn at random, instead of among all.",
)
@device_option
@backend_option
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    help="Arithmetic of the image tower [default: the bundle's].",
)
@threads_option
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Images.")
@click.option(
    "-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="Markdown file to write."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@report_errors
def retrieval(
    pairs: str,
    bundles: tuple[str, ...],
    image_column: str,
    caption_column: str,
    images: Path | None,
    least: int,
    on_error: Any,
    pool: int | None,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """How often a bundle finds the caption of an image, and the image of a caption.

    PAIRS is a table with columns of images and captions. Top-1, 2, 5 and 10 both ways, among
    all distinct captions and images; a partner is whatever the table pairs. Further bundles
    are compared with the first one, query by query.

    \b
    medclipsam retrieval roco/test.csv --bundle biomedclip --bundle tuned=runs/clip/best -o t.md
    medclipsam retrieval pairs.csv --pool 50
    """
    from rich.console import Console

    from medclipsam.engine.durable import write_durable
    from medclipsam.train.pairs.pairs import read_pairs
    from medclipsam.train.retrieval import table as retrieval_table
    from medclipsam.train.retrieval.bundles import compare_bundles, parse_bundles

    def say(text: str) -> None:
        click.echo(text, err=True)

    named = parse_bundles(bundles)
    table = read_pairs(pairs, image_column, caption_column, images, on_error, say, least)
    found = compare_bundles(table, named, on_error, say, **options)
    for problem, count in sorted(found.problems.items()):
        say(f"skipped, {problem}: {count}")
    if out:
        write_durable(out, retrieval_table.to_markdown(found, pool).encode())
    if as_json:
        click.echo(json.dumps(retrieval_table.to_json(found, pool), indent=2))
        return
    for part in retrieval_table.to_tables(found, pool):
        Console().print(part)
