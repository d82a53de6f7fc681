"""``medclipsam tune``: settings for a user's own images, from a few with true masks."""

from pathlib import Path
from typing import Any

import click

from medclipsam.engine.cli.options import (
    EXISTING,
    choose_prompts,
    engine_options,
    open_engine,
    prompt_option,
    read_settings,
    report_errors,
)
from medclipsam.engine.errors import ConfigError


@click.command()
@click.argument("images", type=EXISTING)
@click.argument("truth", type=EXISTING)
@prompt_option
@click.option("--null", "nulls", multiple=True, help="Null prompt to try; may be repeated.")
@click.option(
    "-o",
    "--out",
    default="tuned.toml",
    show_default=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="TOML file to write, for --config.",
)
@engine_options
@report_errors
def tune(
    images: Path,
    truth: Path,
    prompts: tuple[str, ...],
    nulls: tuple[str, ...],
    out: Path,
    **options: Any,
) -> None:
    """Find settings on a few IMAGES whose true masks lie in TRUTH/LABEL/….

    Compares null prompts, saliency methods, layers, wordings, presence thresholds, CRF and
    boxes, one after another. A candidate is taken only if its gain in DSC is no luck: where
    nothing is better, nineteen searches of twenty change nothing. That takes eight labelled
    images or more. Keep others to check the result on.

    \b
    medclipsam tune images/ truth/ -p mass="a mass|a breast tumor" -o tuned.toml
    medclipsam tune images/ truth/ -p lungs --null "normal chest x-ray" --null "an x-ray"
    """
    import tomli_w
    from rich.console import Console

    from medclipsam.engine.durable import write_durable
    from medclipsam.engine.tuning.tune import Tuner, read_samples

    if out.exists():
        raise ConfigError(f"{out} exists; remove it or choose another file with -o")
    wanted = choose_prompts(prompts, options["config"])
    settings = read_settings(options)
    samples = read_samples(images, truth, wanted.labels)
    engine = open_engine(options)
    masks = sum(len(sample.truth) for sample in samples)
    click.echo(f"{len(samples)} images, {masks} true masks")
    tuner = Tuner(engine, samples, settings, nulls, _say)
    if tuner.too_few:
        click.echo(
            f"with {tuner.images} images no gain can be told from chance: everything stays as it "
            f"is; label at least {tuner.too_few}",
            err=True,
        )
    best, trials = tuner.search(wanted)
    Console().print(to_table(trials))
    if tuner.left_out:
        names = ", ".join(tuner.left_out)
        click.echo(f"not tried, backend {engine.backend} has no gradients: {names}")
    found = {**best.settings, "prompts": {k: list(v) for k, v in best.prompts.texts.items()}}
    write_durable(out, tomli_w.dumps(found).encode())
    click.echo(f"settings: {out}; use them with 'medclipsam run ARCHIVE --config {out} -o RUN'")


def _say(trial: Any) -> None:
    click.echo(f"{trial.candidate.axis}: {trial.candidate.name}: {trial.scores.mean():.3f}")


def to_table(trials: Any) -> Any:
    """A row a trial: DSC with its interval, the paired gain over what was in use, and p."""
    from rich.markup import escape
    from rich.table import Table

    from medclipsam.engine.evaluation.interval import Interval
    from medclipsam.engine.evaluation.metrics import mean_interval

    table = Table(
        title="Tuning",
        caption="mean [95 % bootstrap interval]; gain is paired, over what was in use before, "
        "by image; p is that of the best of all candidates of the axis",
    )
    for name in ("axis", "candidate", "DSC", "gain", "p", ""):
        table.add_column(name)
    for trial in trials:
        first = trial.verdict == "in use"
        gain, p = ("", "") if first else (str(Interval(*trial.gain)), f"{trial.p:.3f}")
        scores = str(Interval(*mean_interval(trial.scores)))
        axis, name = escape(trial.candidate.axis), escape(trial.candidate.name)
        table.add_row(axis, name, scores, gain, p, trial.verdict)
    return table
