"""``medclipsam retrieval``: which bundle finds captions and images best."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medclipsam.engine.cli.options import report_errors
from medclipsam.engine.errors import ConfigError
from medclipsam.train.pairs.options import pair_options

if TYPE_CHECKING:
    from medclipsam.train.retrieval.embedding import Embedder


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
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--backend",
    type=click.Choice(["torch", "onnx", "onnx-tensorrt", "tensorrt"]),
    default="torch",
    show_default=True,
    help="What runs the models; onnx after 'medclipsam export'.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    help="Arithmetic of the image tower [default: the bundle's].",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads [default: all].")
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

    from medclipsam.engine.archive import Decoders
    from medclipsam.engine.durable import write_durable
    from medclipsam.train.pairs.pairs import load_image, read_pairs
    from medclipsam.train.retrieval import table as retrieval_table
    from medclipsam.train.retrieval.retrieval import retrieve

    def say(text: str) -> None:
        click.echo(text, err=True)

    named = parse_bundles(bundles)
    table = read_pairs(pairs, image_column, caption_column, images, on_error, say, least)
    threads = options["threads"] or len(os.sched_getaffinity(0))
    with Decoders(threads) as decoders:
        load = partial(load_image, decoders)
        found = retrieve(table.pairs, open_models(named, options), load, on_error, say)
    found.problems.update(table.problems)
    for problem, count in sorted(found.problems.items()):
        say(f"skipped, {problem}: {count}")
    if out:
        write_durable(out, retrieval_table.to_markdown(found, pool).encode())
    if as_json:
        click.echo(json.dumps(retrieval_table.to_json(found, pool), indent=2))
        return
    for part in retrieval_table.to_tables(found, pool):
        Console().print(part)


def parse_bundles(texts: tuple[str, ...]) -> dict[str, str]:
    """Name → bundle, of ``BUNDLE`` and ``NAME=BUNDLE``.

    Raises:
        ConfigError: two of one name, or an empty one.
    """
    named: dict[str, str] = {}
    for text in texts:
        name, equals, place = text.partition("=")
        name, place = (name, place) if equals else (Path(text).name, text)
        if not name or not place:
            raise ConfigError(f"expected BUNDLE or NAME=BUNDLE, got {text!r}")
        if name in named:
            raise ConfigError(f"two bundles are called {name!r}; name them with NAME=BUNDLE")
        named[name] = place
    return named


def open_models(named: dict[str, str], options: dict[str, Any]) -> Iterator[tuple[str, Embedder]]:
    """One bundle after the other; two at most are held at a time."""
    import torch

    from medclipsam.engine.backends import open_device
    from medclipsam.engine.config import make_config
    from medclipsam.engine.encoder import ClipEncoder
    from medclipsam.engine.weights.bundle import open_bundle
    from medclipsam.train.retrieval.embedding import Embedder

    device = open_device(options["device"])
    threads = options["threads"] or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    for name, place in named.items():
        opened = open_bundle(place)
        config = make_config(opened.defaults, {})
        encoder = ClipEncoder.open(
            opened,
            device,
            options["backend"],
            options["batch"],
            precision=options["precision"] or config.precision,
        )
        yield name, Embedder(encoder, config.fit, threads)
