"""Makes anew what the documents say of the results.

python -m medclipsam.benchmarks.figures
python -m medclipsam.benchmarks.figures --check
"""

from pathlib import Path

import click

from medclipsam.benchmarks.figures.generated import generate, list_differences, read_there
from medclipsam.engine.durable import write_durable
from medclipsam.engine.errors import ConfigError


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; end with 1 where something differs.")
@click.option(
    "--root", default=".", show_default=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of README.md, docs/ and benchmarks/results/.",
)  # fmt: skip
def main(check: bool, root: Path) -> None:
    """Pages of results, the plot, and blocks of README.md and docs/, from the results' JSON."""
    try:
        files = generate(root)
    except ConfigError as exc:
        raise click.ClickException(str(exc)) from exc
    differing = list(list_differences(root, files))
    for name in differing:
        click.echo(f"{name}: {'differs' if check else 'made anew'}")
    if check and differing:
        raise click.ClickException("figures differ from the results; say make figures")
    for name, data in files.items():
        if read_there(root / name) != data:
            write_durable(root / name, data)
    if not differing:
        click.echo("all figures are those of the results")


if __name__ == "__main__":
    main()
