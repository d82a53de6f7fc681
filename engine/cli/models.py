"""``medclipsam models``: list, pull, import and verify bundles."""

from pathlib import Path

import click

from medclipsam.engine.cli.options import (
    EXISTING,
    FILE,
    report_errors,
)

SAM_TYPES = ("vit_b", "vit_l", "vit_h", "medsam")


@click.group()
def models() -> None:
    """Bundles of weights: list, download, import, verify.

    \b
    medclipsam models list
    """


@models.command(name="list")
@report_errors
def list_() -> None:
    """Bundles that can be opened by name.

    \b
    medclipsam models list
    """
    from medclipsam.engine.weights.bundle import list_bundles, user_folder

    for folder in list_bundles():
        click.echo(f"{folder.name}\t{folder}")
    click.echo(f"your own bundles go to {user_folder()}", err=True)


@models.command()
@click.argument("name")
@report_errors
def verify(name: str) -> None:
    """Check every file of a bundle by sha256, load its models, compare its exports with them.

    NAME may also be the folder of a task model, which 'medclipsam train unet' wrote.

    \b
    medclipsam models verify phantom
    """
    from importlib import import_module

    from medclipsam.engine.unet.model import is_task_model, open_task_model
    from medclipsam.engine.weights.bundle import open_bundle

    if is_task_model(name):
        task = open_task_model(name)
        click.echo(f"{task.name}: {', '.join(task.config.labels)}, weights as described")
        task.net.eval()
        if task.exports:
            import_module("medclipsam.export.unet").verify_unet(task, click.echo)
        return
    bundle = open_bundle(name)
    for model in (bundle.clip.model, bundle.sam):
        model.eval()
    click.echo(
        f"{bundle.name}: {len(bundle.description['files'])} files as described, both models load"
    )
    if bundle.exports:
        import_module("medclipsam.export.verify").verify_exports(bundle, click.echo)


@models.command(name="import")
@click.option(
    "--clip",
    "clip_folder",
    required=True,
    type=EXISTING,
    help="open_clip model folder, such as a BiomedCLIP download.",
)
@click.option(
    "--clip-weights",
    type=FILE,
    help="Fine-tuned CLIP weights [default: those in the folder].",
)
@click.option("--clip-sha256", help="Expected hash of the CLIP weights.")
@click.option(
    "--sam",
    required=True,
    type=FILE,
    help="SAM weights: Meta's, MedSAM's or your own.",
)
@click.option("--sam-type", type=click.Choice(SAM_TYPES), default="vit_b", show_default=True)
@click.option("--sam-sha256", help="Expected hash of the SAM weights.")
@click.option("--name", required=True, help="Name of the new bundle.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Folder [default: by name, see list]."
)
@report_errors
def import_(
    clip_folder: Path,
    clip_weights: Path | None,
    clip_sha256: str | None,
    sam: Path,
    sam_type: str,
    sam_sha256: str | None,
    name: str,
    out: Path | None,
) -> None:
    """Make a bundle from files on disk; needs no network.

    \b
    medclipsam models import --clip BiomedCLIP/ --sam sam_vit_b_01ec64.pth --name biomed
    """
    from medclipsam.engine.weights.bundle import user_folder
    from medclipsam.engine.weights.importing import Source, find_clip_weights, import_bundle

    bundle = import_bundle(
        name,
        clip_folder,
        Source(sam, sam_sha256),
        sam_type,
        out or user_folder() / name,
        Source(clip_weights or find_clip_weights(clip_folder), clip_sha256),
    )
    click.echo(f"wrote bundle {bundle.name}: {bundle.folder}")


@models.command()
@click.option("--sam-type", type=click.Choice(SAM_TYPES[:3]), default="vit_b", show_default=True)
@click.option("--name", default="biomedclip", show_default=True, help="Name of the new bundle.")
@report_errors
def pull(sam_type: str, name: str) -> None:
    """Download BiomedCLIP (pinned revision) and Meta's SAM, and make a bundle of them.

    \b
    medclipsam models pull --sam-type vit_h
    """
    from medclipsam.engine.weights.bundle import user_folder
    from medclipsam.engine.weights.download import (
        SAM_FILES,
        SAM_URL,
        download_biomedclip,
        download_file,
    )
    from medclipsam.engine.weights.importing import Source, import_bundle

    folder = user_folder()
    clip_folder = download_biomedclip()
    file, sha256 = SAM_FILES[sam_type]
    sam = download_file(SAM_URL + file, folder.parent / "downloads" / file, sha256)
    bundle = import_bundle(name, clip_folder, Source(sam), sam_type, folder / name)
    click.echo(f"wrote bundle {bundle.name}: {bundle.folder}")
