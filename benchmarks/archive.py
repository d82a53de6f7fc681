"""An archive of which few images show what is asked for: images/s of the runner.

    python -m medclipsam.benchmarks.archive --against CHECKOUT [--against CHECKOUT …]

Phantoms, two prompts; a share p of the images shows the first target, every second of these the
other one, too. Beside this revision run those of other checkouts, in the order given, and the
published pipeline written plainly with the same weights (``published``), all on the same
archives, in turns. So the rows are a ladder: what each checkout brought. Quality stands beside
speed.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import torch

from medclipsam.benchmarks.crf import processor
from medclipsam.benchmarks.rivals.published import PublishedPipeline
from medclipsam.benchmarks.rivals.run_jobs import PROMPTS
from medclipsam.engine.durable import write_durable
from medclipsam.engine.evaluation.metrics import dice
from medclipsam.engine.weights.bundle import open_bundle
from medclipsam.train.phantoms.phantoms import Phantom, make_phantom

FIRST_SEED = 6_000_000
HERE = Path(__file__).resolve().parent
PARTS = ("engine", "export", "train", "benchmarks")  # of the package
SHARES = {0: 400, 5: 300, 20: 60, 100: 120}  # percent with the target → images
PUBLISHED = 20  # the share at which the published pipeline runs; it knows no other

Run = Callable[[Path, Path], float]  # (archive, folder to make) → seconds


@dataclass
class Archive:
    """Phantoms as PNG files.

    Attributes:
        share: percent of the images that show the first target.
    """

    folder: Path
    share: int
    phantoms: list[Phantom]


def write_archive(folder: Path, share: int, count: int) -> Archive:
    """``count`` images; those with a target lie evenly among the others."""
    folder.mkdir(parents=True)
    first, second = PROMPTS
    phantoms, shown = [], 0
    for n in range(count):
        targets: list[str] = []
        if (n + 1) * share // 100 > n * share // 100:
            targets, shown = ([first, second] if shown % 2 else [first]), shown + 1
        phantom = make_phantom(FIRST_SEED + 1000 * share + n, "ultrasound", targets)
        cv2.imwrite(str(folder / f"{n:04}.png"), phantom.grey)
        phantoms.append(phantom)
    return Archive(folder, share, phantoms)


@contextmanager
def open_revision(
    checkout: Path, scratch: Path, bundle: str, device: str, threads: int
) -> Iterator[Run]:
    """The engine of a checkout, in a process of its own that waits for archives."""
    package = scratch / "medclipsam"
    package.mkdir(parents=True)
    for part in PARTS:
        (package / part).symlink_to(checkout.resolve() / part)
    child = subprocess.Popen(
        [sys.executable, str(HERE / "rivals" / "run_jobs.py"), bundle, device, str(threads)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=scratch,
        env={**os.environ, "PYTHONPATH": str(scratch)},
    )  # fmt: skip
    assert child.stdin is not None and child.stdout is not None
    given, answers = child.stdin, child.stdout

    def run(archive: Path, out: Path) -> float:
        given.write(json.dumps([str(archive), str(out)]) + "\n")
        given.flush()
        answer = answers.readline()
        if not answer:
            raise click.ClickException(f"the engine of {checkout} ended; see its messages above")
        return float(json.loads(answer)["seconds"])

    try:
        yield run
    finally:
        given.close()
        child.wait()


def open_published(bundle: str, device: str, threads: int) -> Run:
    """The published pipeline, in this process."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    pipeline = PublishedPipeline.open(open_bundle(bundle), torch.device(device))

    def run(archive: Path, out: Path) -> float:
        started = time.perf_counter()
        pipeline.run(archive, PROMPTS, out)
        return time.perf_counter() - started

    return run


@dataclass
class Measured:
    """One revision on one archive: seconds of its runs, and what the first one drew."""

    seconds: list[float] = field(default_factory=list)
    quality: dict[str, float] = field(default_factory=dict)


def judge(archive: Archive, out: Path) -> dict[str, float]:
    """Mean DSC of the targets that are shown, share of the others that are said to be absent."""
    scores, empty = [], []
    for n, phantom in enumerate(archive.phantoms):
        for label in PROMPTS:
            mask = cv2.imread(str(out / "masks" / label / f"{n:04}.png"), cv2.IMREAD_GRAYSCALE)
            found = np.zeros(phantom.pixels.shape, bool) if mask is None else mask > 0
            if label in phantom.masks:
                scores.append(dice(found, phantom.masks[label]))
            else:
                empty.append(not found.any())
    quality = {"dsc": round(float(np.mean(scores)), 4)} if scores else {}
    return quality | ({"absent_said": round(float(np.mean(empty)), 4)} if empty else {})


def measure(
    archive: Archive, runs: Mapping[str, Run], repeats: int, scratch: Path
) -> dict[str, Measured]:
    """All revisions in turns, ``repeats`` times."""
    found = {name: Measured() for name in runs}
    for turn in range(repeats):
        # every other turn backwards: who comes second pays for what the first left to the disk
        for name, run in list(runs.items())[:: -1 if turn % 2 else 1]:
            out = scratch / f"run {turn}"
            found[name].seconds.append(round(run(archive.folder, out), 3))
            if not turn:
                found[name].quality = judge(archive, out)
            shutil.rmtree(out)
            click.echo(f"p = {archive.share} %, {name}: {found[name].seconds[-1]} s")
    return found


def describe(checkout: Path) -> str:
    """Revision and subject of the last commit of a checkout."""
    command = ["git", "-C", str(checkout), "log", "-1", "--format=%h %s"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def summarise(archive: Archive, found: Mapping[str, Measured], first: str) -> dict[str, Any]:
    """Median rates with their spread, and ratios of medians to the first revision."""
    base = float(np.median(found[first].seconds))
    return {
        name: {
            "images": len(archive.phantoms),
            "images_per_s": round(len(archive.phantoms) / float(np.median(m.seconds)), 3),
            "seconds": m.seconds,
            "times_first": round(base / float(np.median(m.seconds)), 2),
            **m.quality,
        }
        for name, m in found.items()
    }


def to_markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A row a revision, a column a share."""
    names = dict.fromkeys(name for rows in results.values() for name in rows)
    lines = [
        f"| images/s | {' | '.join(f'p = {share} %' for share in results)} |",
        "| --- " * (len(results) + 1) + "|",
    ]
    for name in names:
        cells = []
        for rows in results.values():
            row = rows.get(name)
            cells.append(_cell(row) if row else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[str, Any]) -> str:
    times = [row["images"] / s for s in row["seconds"]]
    quality = [f"DSC {row['dsc']:.2f}"] if "dsc" in row else []
    quality += [f"absent said {row['absent_said']:.2f}"] if "absent_said" in row else []
    rate = f"{row['images_per_s']:.2f} [{min(times):.2f}, {max(times):.2f}]"
    return f"{rate}, {row['times_first']:.1f} times; {', '.join(quality)}"


@click.command()
@click.option(
    "--against", multiple=True, help="A checkout of another revision; may be repeated.",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)  # fmt: skip
@click.option("--bundle", default="phantom", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--share", "shares", multiple=True, type=int, default=tuple(SHARES), show_default=True,
    help="Percent of the images with the target; may be repeated.",
)  # fmt: skip
@click.option("--scale", default=1.0, show_default=True, help="Of the numbers of images.")
@click.option(
    "-o", "--out", default="benchmarks/results", show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
)  # fmt: skip
def main(
    against: tuple[Path, ...], bundle: str, device: str, threads: int, repeats: int,
    shares: tuple[int, ...], scale: float, out: Path,
) -> None:  # fmt: skip
    """Writes archive.md and data/archive.json."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        scratch = Path(folder)
        runs: dict[str, Run] = {}
        for n, checkout in enumerate((*against, HERE.parent)):
            revision = open_revision(checkout, scratch / f"package {n}", bundle, device, threads)
            runs[describe(checkout)] = stack.enter_context(revision)
        first = next(iter(runs))
        published = open_published(bundle, device, threads)
        warm = write_archive(scratch / "warm", 50, 4)
        for n, run in enumerate((*runs.values(), published)):
            run(warm.folder, scratch / f"warm run {n}")
        for share in shares:
            images = max(2, round(SHARES.get(share, SHARES[PUBLISHED]) * scale))
            archive = write_archive(scratch / f"archive {share}", share, images)
            asked = {"published, plainly": published} if share == PUBLISHED else {}
            found = measure(archive, {**asked, **runs}, repeats, scratch)
            results[str(share)] = summarise(archive, found, first)
    facts = {
        "command": f"python -m medclipsam.benchmarks.archive {'--against CHECKOUT ' * len(against)}"
        f"{' '.join(f'--share {share}' for share in shares)} --threads {threads} "
        f"--repeats {repeats} --device {device} --scale {scale:g}",
        "machine": f"{processor()}, {threads} threads, device {device}",
        "versions": {name: version(name) for name in ("medclipsam", "torch", "numpy")},
        "bundle": open_bundle(bundle).digest,
        "results": results,
    }
    table = to_markdown(results)
    head = f"`{facts['command']}`\n\n{facts['machine']}, torch {version('torch')}\n\n"
    write_durable(out / "data" / "archive.json", (json.dumps(facts, indent=2) + "\n").encode())
    write_durable(out / "archive.md", (head + table).encode())
    click.echo(table)


if __name__ == "__main__":
    main()
