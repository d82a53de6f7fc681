"""``medclipsam export``: trained weights as graphs for other runtimes."""

from pathlib import Path
from typing import get_args

import click

from medclipsam.engine.cli.options import (
    EXISTING,
    FOLDER,
    device_option,
    report_errors,
    threads_option,
)
from medclipsam.engine.config import Precision


@click.command()
@click.argument("bundle")
@click.option("--to", type=click.Choice(["onnx", "tensorrt"]), default="onnx", show_default=True)
@click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    default="fp32",
    show_default=True,
    help="Arithmetic of the image towers.",
)
@click.option(
    "-o",
    "--out",
    type=FOLDER,
    help="Put the export into a copy of the bundle here [default: into the bundle itself].",
)
@click.option(
    "--images",
    type=EXISTING,
    help="Folder of images to compare on [default: six synthetic ones].",
)
@click.option(
    "-p", "--prompt", "prompts", multiple=True, help="What to look for in them; may be repeated."
)
@click.option(
    "--set",
    "pairs",
    multiple=True,
    metavar="NAME=VALUE",
    help="TensorRT plans are for one batch size: saliency.rows, segment.batch or segment.boxes, "
    "as 'medclipsam run' will get them.",
)
@device_option
@threads_option
@report_errors
def export(
    bundle: str,
    to: str,
    precision: str,
    out: Path | None,
    images: Path | None,
    prompts: tuple[str, ...],
    pairs: tuple[str, ...],
    device: str,
    threads: int | None,
) -> None:
    """Export a bundle, and publish the graphs only if they give the same masks.

    BUNDLE is the name or folder of a bundle, or the folder of a task model from 'medclipsam train
    unet'. A bundle that ships with medclipsam is copied to your own folder, see 'medclipsam
    models list'.

    \b
    medclipsam export phantom --to onnx
    medclipsam export biomedclip --to onnx --precision fp16 --images scans/ -p "brain tumor"
    medclipsam export phantom --to tensorrt --precision fp16
    medclipsam export models/masses --to onnx --images scans/
    """
    import os

    import torch

    from medclipsam.engine.backends import open_device
    from medclipsam.engine.config import parse_settings
    from medclipsam.engine.prompts import parse_prompts
    from medclipsam.engine.types import Prompts
    from medclipsam.engine.unet.model import is_task_model
    from medclipsam.engine.weights.bundle import open_bundle
    from medclipsam.export.publish import choose_target, export_onnx
    from medclipsam.export.scans import PROMPTS, draw_scans, read_scans
    from medclipsam.export.tensorrt_publish import publish_plans
    from medclipsam.export.unet import export_unet, require_plain

    def log(line: str) -> None:
        click.echo(line, err=True)

    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    where = open_device(device)
    scans = read_scans(images) if images else draw_scans()
    if is_task_model(bundle):
        require_plain({"--out": out, "--prompt": prompts, "--set": pairs})
        model = export_unet(bundle, to, precision, scans, where, log)
        click.echo(f"{model.folder}: {to} in {precision} agrees with torch")
        return
    opened = open_bundle(bundle)
    target = choose_target(opened, out)
    wanted = parse_prompts(prompts) if prompts else Prompts(PROMPTS)
    if to == "onnx":
        published = export_onnx(opened, precision, target, scans, wanted, where, log)
    else:
        published = publish_plans(
            opened, precision, target, scans, wanted, where, log, parse_settings(pairs)
        )
    click.echo(f"{published.folder}: {to} in {precision} agrees with torch")
