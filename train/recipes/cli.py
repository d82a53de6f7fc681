"""``medclipsam recipe``: the data sets of the paper, one command each from data to table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medclipsam.engine.cli.options import report_errors

if TYPE_CHECKING:
    from medclipsam.train.recipes.recipe import Recipe

DATA = click.Path(file_okay=False, path_type=Path)
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
    from medclipsam.train.recipes.recipe import find_recipe, list_recipes, read_recipe

    for name in list_recipes():
        found = read_recipe(find_recipe(name))
        click.echo(f"{name:12} {found.task:13} {found.title}")


@recipe.command()
@click.argument("name")
@report_errors
def show(name: str) -> None:
    """Print a recipe: where to download, how the data must lie, prompts and settings.

    What is printed is the recipe's file: change a copy of it for data of your own.

    \b
    medclipsam recipe show busi
    """
    from medclipsam.train.recipes.recipe import find_recipe, read_recipe

    path = find_recipe(name)
    read_recipe(path)
    click.echo(path.read_text("utf-8"), nl=False)


@recipe.command()
@click.argument("name")
@click.argument("data", type=DATA)
@incomplete_option
@changes_option
@report_errors
def check(name: str, data: Path, incomplete: bool, changes: tuple[str, ...]) -> None:
    """Say whether DATA lies as a recipe expects, and name everything that does not.

    \b
    medclipsam recipe check busi downloads/
    """
    from medclipsam.train.recipes.layout import examine, require
    from medclipsam.train.recipes.pairs import read_captions

    found = _open(name, changes)
    if found.task == "segmentation":
        layout = examine(found, data)
        require(layout.problems, found, data, incomplete)
        sides = (f"{len(layout.of(split))} images for {split}" for split in ("train", "test"))
        click.echo(f"as expected: {', '.join(sides)}")
        return
    pairs, problems = read_captions(found, data)
    require(problems, found, data, incomplete)
    click.echo(f"as expected: {len(pairs.pairs)} pairs of image and caption")


@recipe.command()
@click.argument("name")
@click.argument("data", type=DATA)
@click.option("-o", "--out", required=True, type=DATA, help="Folder of runs, models and table.")
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
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--backend",
    type=click.Choice(["torch", "onnx", "onnx-tensorrt", "tensorrt"]),
    default="torch",
    show_default=True,
    help="What runs the bundles; onnx after 'medclipsam export'.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads [default: all].")
@report_errors
def run(
    name: str,
    data: Path,
    out: Path,
    bundles: tuple[str, ...],
    stages: tuple[str, ...],
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
    from medclipsam.train.recipes.run import carry_out
    from medclipsam.train.retrieval.cli import parse_bundles

    job = Job(
        _open(name, changes), data, out, parse_bundles(bundles), stages, limit or 0,
        log=lambda text: click.echo(text, err=True), **options,
    )  # fmt: skip
    result = carry_out(job)
    if result.table.suffix == ".md":
        click.echo(result.table.read_text("utf-8"))
    click.echo(str(result.table))
    sys.exit(3 if result.quarantined else 0)


def _open(name: str, changes: tuple[str, ...]) -> Recipe:
    from medclipsam.train.recipes.recipe import find_recipe, parse_changes, read_recipe

    return read_recipe(find_recipe(name), parse_changes(changes))
