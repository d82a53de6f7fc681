"""``medclipsam recipe``: the data sets of the paper, one command each from data to table."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from medclipsam.engine.cli.options import (
    FOLDER,
    backend_option,
    device_option,
    report_errors,
    threads_option,
)

name_argument = click.argument("name")
data_argument = click.argument("data", type=FOLDER)
changes_option = click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any entry of the recipe, such as training.epochs=2; may be repeated.",
)
incomplete_option = click.option(
    "--incomplete", is_flag=True, help="Accept fewer images than the data set has."
)


@click.group()
def recipe() -> None:
    """Data sets of the paper, from their download to a table.

    NAME is one of 'medclipsam recipe list', or the path of a .toml file of your own.

    \b
    medclipsam recipe run phantom phantoms/ -o tables/phantom
    """


@recipe.command(name="list")
@report_errors
def list_() -> None:
    """Name every recipe that comes with the package.

    \b
    medclipsam recipe list
    """
    from medclipsam.train.recipes.recipe import list_recipes, read_recipe

    for name in list_recipes():
        found = read_recipe(name)
        click.echo(f"{name:12} {found.task:13} {found.title}")


@recipe.command()
@name_argument
@report_errors
def show(name: str) -> None:
    """Print a recipe: where to download, how the data must lie, prompts and settings.

    What is printed is the recipe's file: change a copy of it for data of your own.

    \b
    medclipsam recipe show busi
    """
    from medclipsam.train.recipes.recipe import find_recipe, read_recipe

    read_recipe(name)
    click.echo(find_recipe(name).read_text("utf-8"), nl=False)


@recipe.command()
@name_argument
@data_argument
@incomplete_option
@changes_option
@report_errors
def check(name: str, data: Path, incomplete: bool, changes: tuple[str, ...]) -> None:
    """Say whether DATA lies as a recipe expects, and name everything that does not.

    \b
    medclipsam recipe check busi downloads/
    """
    from medclipsam.train.recipes.layout import look
    from medclipsam.train.recipes.recipe import read_recipe

    click.echo(f"as expected: {look(read_recipe(name, changes), data, incomplete)}")


@recipe.command()
@name_argument
@data_argument
@click.option("-o", "--out", required=True, type=FOLDER, help="Folder of runs, models and table.")
@click.option(
    "--bundle",
    "bundles",
    multiple=True,
    metavar="[NAME=]BUNDLE",
    help="Bundle name or folder; may be repeated [default: the recipe's].",
)
@click.option(
    "--stage",
    "stages",
    multiple=True,
    help="Only these: zero-shot and weak, or train and retrieval [default: all].",
)
@click.option(
    "--limit", type=click.IntRange(1), help="Images of each side of the split, or pairs, at most."
)
@incomplete_option
@changes_option
@device_option
@backend_option
@threads_option
@report_errors
def run(
    name: str,
    bundles: tuple[str, ...],
    limit: int | None,
    changes: tuple[str, ...],
    **options: Any,
) -> None:
    """Check DATA, do all that the recipe says, and write table.md and table.json to OUT.

    Running the same command again goes on where it stopped. The recipe 'phantom' writes its
    data itself.

    \b
    medclipsam recipe run phantom phantoms/ -o tables/phantom --limit 12
    medclipsam recipe run busi downloads/ -o tables/busi --bundle pretrained=biomedclip \\
        --bundle tuned=tables/medpix/model/bundle
    """
    from medclipsam.train.recipes.job import Job
    from medclipsam.train.recipes.recipe import read_recipe
    from medclipsam.train.recipes.run import carry_out
    from medclipsam.train.retrieval.bundles import parse_bundles

    found, named = read_recipe(name, changes), parse_bundles(bundles)
    say = partial(click.echo, err=True)
    result = carry_out(Job(found, bundles=named, limit=limit or 0, log=say, **options))
    if result.table.suffix == ".md":
        click.echo(result.table.read_text("utf-8"))
    click.echo(str(result.table))
    sys.exit(3 if result.quarantined else 0)
