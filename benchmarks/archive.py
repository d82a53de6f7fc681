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
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import torch

from medclipsam.benchmarks.inputs.archive import Archive, write_archive
from medclipsam.benchmarks.measuring.machine import describe_revision
from medclipsam.benchmarks.measuring.result import RESULTS, open_facts, publish
from medclipsam.benchmarks.measuring.spread import Ratio, Spread, Turns, take_turns
from medclipsam.benchmarks.rivals.published import PublishedPipeline
from medclipsam.benchmarks.rivals.run_jobs import PROMPTS
from medclipsam.engine.evaluation.metrics import dice
from medclipsam.engine.weights.bundle import open_bundle

HERE = Path(__file__).resolve().parent
PARTS = ("engine", "export", "train", "benchmarks")  # of the package
SHARES = {0: 400, 5: 300, 20: 60, 100: 120}  # percent with the target → images
PUBLISHED = 20  # the share at which the published pipeline runs; it knows no other
PLAINLY = "published, plainly"

Run = Callable[[Path, Path], object]  # (archive, folder to make)


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

    def run(archive: Path, out: Path) -> None:
        given.write(json.dumps([str(archive), str(out)]) + "\n")
        given.flush()
        answer = answers.readline()
        if not answer:
            raise click.ClickException(f"the engine of {checkout} ended; see its messages above")

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
    return lambda archive, out: pipeline.run(archive, PROMPTS, out)


@dataclass
class Measured:
    """All revisions on one archive: seconds in turns, and how good what each has drawn is."""

    turns: Turns
    quality: dict[str, dict[str, float]] = field(default_factory=dict)


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


def measure(archive: Archive, runs: Mapping[str, Run], turns: int, scratch: Path) -> Measured:
    """All revisions in turns."""
    found, outs = Measured(Turns({})), (scratch / f"run {n}" for n in count())

    def label(name: str) -> None:
        runs[name](archive.folder, next(outs))

    for name, run in runs.items():  # what each draws is judged in a run that does not count
        run(archive.folder, out := next(outs))
        found.quality[name] = judge(archive, out)
    calls = {name: partial(label, name) for name in runs}
    found.turns = take_turns(calls, turns, warm_up=0, short=0)
    click.echo(json.dumps({"share": archive.share, **found.turns.seconds}))
    for out in scratch.glob("run *"):
        shutil.rmtree(out)
    return found


def summarise(archive: Archive, found: Measured, first: str) -> dict[str, Any]:
    """Rates with their spread, and how many times as fast as the first and the published one."""
    rows: dict[str, Any] = {}
    for name in found.turns.seconds:
        rows[name] = {
            "images": len(archive.phantoms),
            "images_per_s": found.turns.rate(name, len(archive.phantoms)).to_json(),
            **found.quality[name],
        }
        if name not in (first, PLAINLY):
            rows[name]["times_first"] = found.turns.times(name, first).to_json()
        if name != PLAINLY and PLAINLY in found.turns.seconds:
            rows[name]["times_published"] = found.turns.times(name, PLAINLY).to_json()
    return rows


def to_markdown(facts: Mapping[str, Any]) -> str:
    """A row a revision, a column a share."""
    results = facts["results"]
    names = dict.fromkeys(name for rows in results.values() for name in rows)
    lines = [
        f"| images/s | {' | '.join(f'p = {share} %' for share in results)} |",
        "| --- " * (len(results) + 1) + "|",
    ]
    for name in names:
        cells = [_cell(rows[name]) if name in rows else "" for rows in results.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(row: Mapping[str, Any]) -> str:
    parts = [Spread.from_json(row["images_per_s"]).show()]
    for key, other in (("times_first", "the first"), ("times_published", "the published")):
        if key in row:
            parts.append(f"{Ratio.from_json(row[key]).show(1)} {other}")
    parts += [f"DSC {row['dsc']:.2f}"] if "dsc" in row else []
    parts += [f"absent said {row['absent_said']:.2f}"] if "absent_said" in row else []
    return "; ".join(parts)


@click.command()
@click.option(
    "--against", multiple=True, help="A checkout of another revision; may be repeated.",
    type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="CHECKOUT",
)  # fmt: skip
@click.option("--bundle", default="phantom", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--turns", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--share", "shares", multiple=True, type=int, default=tuple(SHARES), show_default=True,
    help="Percent of the images with the target; may be repeated.",
)  # fmt: skip
@click.option("--scale", default=1.0, show_default=True, help="Of the numbers of images.")
@RESULTS
def main(
    against: tuple[Path, ...], bundle: str, device: str, threads: int, turns: int,
    shares: tuple[int, ...], scale: float, out: Path,
) -> None:  # fmt: skip
    """Writes archive.md and archive.json."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        scratch = Path(folder)
        runs: dict[str, Run] = {}
        for n, checkout in enumerate((*against, HERE.parent)):
            revision = open_revision(checkout, scratch / f"package {n}", bundle, device, threads)
            runs[describe_revision(checkout)] = stack.enter_context(revision)
        first = next(iter(runs))
        published = open_published(bundle, device, threads)
        warm = write_archive(scratch / "warm", 50, 4)
        for n, run in enumerate((*runs.values(), published)):
            run(warm.folder, scratch / f"warm run {n}")
        for share in shares:
            images = max(2, round(SHARES.get(share, SHARES[PUBLISHED]) * scale))
            archive = write_archive(scratch / f"archive {share}", share, images)
            asked = {PLAINLY: published} if share == PUBLISHED else {}
            found = measure(archive, {**asked, **runs}, turns, scratch)
            results[str(share)] = summarise(archive, found, first)
    facts = open_facts(device=torch.device(device))
    facts |= {"bundle": open_bundle(bundle).digest, "results": results}
    publish(out, "archive", facts, to_markdown)


if __name__ == "__main__":
    main()
