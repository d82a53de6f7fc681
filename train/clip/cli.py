"""``medclipsam train clip``."""

from __future__ import annotations

import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from medclipsam.engine.cli.options import report_errors
from medclipsam.engine.errors import ConfigError
from medclipsam.train.pairs.options import pair_options

LOSSES = ("dhn-nce", "hn-nce", "dcl", "info-nce")
AUGMENTATIONS = ("none", "light", "patches")


@click.command()
@click.argument("pairs")
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the training; the new bundle is its sub-folder 'bundle'.",
)
@click.option("--bundle", default="biomedclip", show_default=True, help="Where to start from.")
@click.option("--from-scratch", is_flag=True, help="Only the bundle's architecture is taken.")
@pair_options
@click.option(
    "--mask-column", help="Masks of what captions are about, which blurred patches do not hide."
)
@click.option(
    "--validation",
    default="0.1",
    show_default=True,
    metavar="SHARE|PAIRS",
    help="Share of the pairs, or pairs of their own, to choose the best epoch by; 0 for none.",
)
@click.option("--loss", type=click.Choice(LOSSES), default="dhn-nce", show_default=True)
@click.option("--temperature", type=click.FloatRange(0, min_open=True), default=0.6,
              show_default=True)  # fmt: skip
@click.option("--beta", type=click.FloatRange(0), default=0.15, show_default=True,
              help="Hardness of negatives.")  # fmt: skip
@click.option("--epochs", type=click.IntRange(1), default=10, show_default=True)
@click.option("--batch", type=click.IntRange(2), default=64, show_default=True,
              help="Pairs that see each other, over all GPUs.")  # fmt: skip
@click.option("--part", type=click.IntRange(0), default=0, show_default=True,
              help="Pairs embedded at once, where a batch does not fit.")  # fmt: skip
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=1e-5,
              show_default=True)  # fmt: skip
@click.option("--weight-decay", type=click.FloatRange(0), default=0.1, show_default=True)
@click.option("--warmup", type=click.IntRange(0), default=100, show_default=True, help="Steps.")
@click.option("--clip-norm", type=click.FloatRange(0, min_open=True), default=1.0,
              show_default=True)  # fmt: skip
@click.option("--ema", type=click.FloatRange(0, 1, max_open=True), default=0.0, show_default=True,
              help="Decay of averaged weights, which are then the ones kept.")  # fmt: skip
@click.option("--lora", type=click.IntRange(0), default=0, show_default=True,
              help="Rank of low-rank additions; 0 trains all weights.")  # fmt: skip
@click.option("--augmentation", type=click.Choice(AUGMENTATIONS), default="none",
              show_default=True)  # fmt: skip
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32",
              show_default=True)  # fmt: skip
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads [default: all].")
@report_errors
def clip(
    pairs: str,
    out: Path,
    bundle: str,
    image_column: str,
    caption_column: str,
    images: Path | None,
    least: int,
    on_error: Any,
    mask_column: str | None,
    validation: str,
    device: str,
    threads: int | None,
    **options: Any,
) -> None:
    """Fine-tune the CLIP of a bundle on images and captions.

    PAIRS is a table with columns of images and captions (MedPix, ROCO v2), a captions.txt with
    name, tab and caption in each line (ROCO), a folder with a .txt beside each image, or WebDataset
    shards. The same command again goes on where it stopped. Several GPUs: start it with torchrun.

    \b
    medclipsam train clip medpix.csv -o models/medpix --bundle biomedclip
    medclipsam train clip 'roco-{00..31}.tar' -o models/roco --lora 16 --precision bf16
    torchrun --nproc-per-node 4 -m medclipsam.engine.cli train clip medpix.csv -o models/medpix
    """
    import torch

    from medclipsam.engine.cli.stopping import stop_on_signals
    from medclipsam.engine.weights.bundle import open_bundle
    from medclipsam.train.clip.fit import ClipTraining
    from medclipsam.train.clip.run import refuse_foreign, train_clip
    from medclipsam.train.pairs.pairs import read_pairs
    from medclipsam.train.problems import Problems
    from medclipsam.train.ranks import open_ranks

    names = {field.name for field in fields(ClipTraining)}
    training = ClipTraining(**{name: value for name, value in options.items() if name in names})
    share = _share(validation)
    count = threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(count)
    refuse_foreign(out)
    with open_ranks(device) as ranks, stop_on_signals(lambda t: click.echo(t, err=True)) as stop:

        def say(text: str) -> None:
            if ranks.first:
                click.echo(text, err=True)

        def read(source: str) -> Any:
            return read_pairs(
                source, image_column, caption_column, images, on_error, say, least, mask_column
            )

        listed = read(pairs)
        problems = Problems(on_error == "fail", say, listed.problems)
        made = train_clip(
            open_bundle(bundle), listed, out, training, ranks, problems,
            read(validation) if share is None else share, count, stop, say,
        )  # fmt: skip
        for kind, number in sorted(problems.counts.items()):
            say(f"left out, {kind}: {number}")
        if made is None:
            say("Interrupted. Run the same command again to go on.")
            sys.exit(130)
        if ranks.first:
            click.echo(f"bundle: {made}")


def _share(text: str) -> float | None:
    """The share of ``--validation``, or None if it names pairs."""
    try:
        share = float(text)
    except ValueError:
        return None
    if not 0 <= share < 1:
        raise ConfigError(f"the share to validate on lies in [0, 1), got {text}")
    return share
