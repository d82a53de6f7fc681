"""``medclipsam train clip``."""

import sys
from pathlib import Path
from typing import Any

import click

from medclipsam.engine.cli.options import (
    FOLDER,
    device_option,
    report_errors,
    setting,
    threads_option,
)
from medclipsam.engine.errors import ConfigError
from medclipsam.train.clip.settings import ClipTraining
from medclipsam.train.options import pair_options


@click.command()
@click.argument("pairs")
@click.option(
    "-o",
    "--out",
    required=True,
    type=FOLDER,
    help="Folder of the training; the new bundle is its sub-folder 'bundle'.",
)
@click.option("--bundle", default="biomedclip", show_default=True, help="Where to start from.")
@setting(ClipTraining, "from_scratch", "Only the bundle's architecture is taken.")
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
@setting(ClipTraining, "loss")
@setting(ClipTraining, "temperature")
@setting(ClipTraining, "beta", "Hardness of negatives.")
@setting(ClipTraining, "epochs")
@setting(ClipTraining, "batch", "Pairs that see each other, over all GPUs.")
@setting(ClipTraining, "part", "Pairs embedded at once, where a batch does not fit.")
@setting(ClipTraining, "learning_rate")
@setting(ClipTraining, "weight_decay")
@setting(ClipTraining, "warmup", "Steps.")
@setting(ClipTraining, "clip_norm")
@setting(ClipTraining, "ema", "Decay of averaged weights, which are then the ones kept.")
@setting(ClipTraining, "lora", "Rank of low-rank additions; 0 trains all weights.")
@setting(ClipTraining, "augmentation")
@setting(ClipTraining, "precision")
@setting(ClipTraining, "seed")
@device_option
@threads_option
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
    **settings: Any,
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
    from medclipsam.engine.cli.stopping import stop_on_signals
    from medclipsam.engine.weights.bundle import open_bundle
    from medclipsam.train.clip.run import refuse_foreign, train_clip
    from medclipsam.train.pairs.pairs import read_pairs
    from medclipsam.train.problems import Problems
    from medclipsam.train.ranks import open_ranks
    from medclipsam.train.threads import use_threads

    training, share, count = ClipTraining(**settings), _share(validation), use_threads(threads)
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
