"""Images per second of the streaming runner beside its slowest stage and a plain loop.

    python -m medclipsam.benchmarks.streaming

Phantoms as PNG, asked for two targets. In one process, one after another, repeated and the
best of each taken: every stage alone over all images; the same work image by image in a loop;
the runner. The loop and the runner give the same masks, which is checked. Once with the
bundle's saliency, which takes hundreds of rows an image and nearly all of the time, and once
with gradcam, which takes none, so that the other stages show.
"""

import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np

from medclipsam.engine.archive import Decoders, Entry, Limits, open_archive
from medclipsam.engine.durable import write_durable
from medclipsam.engine.engine import Engine
from medclipsam.engine.pipeline import Localization, Located
from medclipsam.engine.run.folder import RunFolder
from medclipsam.engine.run.ledger import Ledger
from medclipsam.engine.run.runner import run
from medclipsam.engine.run.work import Delivery, Work, finish_work
from medclipsam.engine.types import Image, Outcome, Prompts
from medclipsam.train.phantoms.phantoms import MODALITIES, PROMPTS, TARGETS, make_phantom

FIRST_SEED = 4_000_000
Stages = dict[str, Callable[[], Any]]


class Bench:
    """All images of one archive, and what each stage makes of them."""

    def __init__(self, engine: Engine, archive: Path, prompts: Prompts, scratch: Path):
        self.engine, self.archive, self.prompts, self.scratch = engine, archive, prompts, scratch
        self.entries: list[Entry] = list(open_archive(archive))
        self.works: list[Work] = []
        self.answers: list[Located] = []
        self.found: list[list[Localization]] = []

    def read(self, decoders: Decoders, pool: ThreadPoolExecutor) -> None:
        """read_image of all items, on threads."""

        def read(entry: Entry) -> Work:
            decoded = decoders.decode(entry)
            image = Image(entry.ref, decoded.frames, decoded.grid)
            return Work(entry.ref, self.prompts, image, digest=decoded.digest)

        self.works = list(pool.map(read, self.entries))

    def compute_saliency(self) -> None:
        """All frames through CLIP, rows sharing batches."""
        asked = ((frame, self.prompts) for frame in self.frames)
        self.answers = list(self.engine.pipeline.compute_saliency(asked, maps=False))

    def refine(self, pool: ThreadPoolExecutor) -> None:
        """Dense CRF and boxes of all frames, on threads."""
        asked = [self.prompts] * len(self.frames)
        refine = self.engine.pipeline.refine
        self.found = list(pool.map(lambda *f: list(refine(*f)), self.frames, asked, self.answers))

    def segment(self) -> None:
        """All boxes through SAM, in full batches."""
        pipeline, frames = self.engine.pipeline, self.frames
        boxed = [n for n, group in enumerate(self.found) if any(len(f.boxes) for f in group)]
        encoded = pipeline.segmenter.encode_image([frames[n] for n in boxed])
        embeddings = dict(zip(boxed, encoded, strict=True))
        chosen = [(n, f) for n, group in enumerate(self.found) for f in group if len(f.boxes)]
        masks = pipeline.segmenter.segment(
            [embeddings[n] for n, _ in chosen],
            [frames[n].shape[:2] for n, _ in chosen],
            [f.boxes for _, f in chosen],
        )
        drawn = {id(f): mask for (_, f), mask in zip(chosen, masks, strict=True)}
        for work, group in zip(self.works, self.found, strict=True):
            work.segments = [
                {f.label: pipeline.to_segmentation(f, drawn.get(id(f))) for f in group}
            ]

    def write(self, pool: ThreadPoolExecutor) -> None:
        """write_mask and commit of all items, on threads."""
        out = self._fresh("write")
        with RunFolder(out, {}) as folder, Ledger(out / "ledger.sqlite") as ledger:

            def write(work: Work) -> list[Outcome]:
                files, rows = finish_work(work, Delivery())
                folder.write_all(files)
                return rows

            ledger.commit(row for rows in pool.map(write, self.works) for row in rows)

    def loop(self) -> Path:
        """The same work, one image after another."""
        out = self._fresh("loop")
        with (
            RunFolder(out, {}) as folder,
            Ledger(out / "ledger.sqlite") as ledger,
            Decoders(1, Limits()) as decoders,
        ):
            for entry in self.entries:
                decoded = decoders.decode(entry)
                image = Image(entry.ref, decoded.frames, decoded.grid)
                work = Work(entry.ref, self.prompts, image, digest=decoded.digest)
                segments = self.engine.pipeline.segment(
                    [image.frames[0]], [self.prompts], maps=False
                )
                work.segments = segments
                files, rows = finish_work(work, Delivery())
                folder.write_all(files)
                ledger.commit(rows)
        return out

    def stream(self) -> tuple[Path, dict[str, Any]]:
        """The runner."""
        out = self._fresh("stream")
        summary = run(self.engine, open_archive(self.archive), self.prompts, out)
        idle = {"idle": summary.idle, "idle_queued": summary.idle_queued}
        stages = [asdict(stage) for stage in summary.stages]
        return out, {"seconds": summary.seconds, **idle, "stages": stages}

    @property
    def frames(self) -> list[np.ndarray]:
        """The only frame of each item."""
        return [work.image.frames[0] for work in self.works if work.image is not None]

    def _fresh(self, name: str) -> Path:
        out = self.scratch / name
        shutil.rmtree(out, ignore_errors=True)
        return out


def write_phantoms(folder: Path, count: int, side: int) -> None:
    """``count`` phantoms as PNG, with each target present in half of them."""
    folder.mkdir(parents=True)
    for n in range(count):
        modality = MODALITIES[n % len(MODALITIES)]
        a, b = TARGETS[modality]
        targets = ((a,), (a, b), (b,), ())[n // len(MODALITIES) % 4]
        pixels = make_phantom(FIRST_SEED + n, modality, targets, (side, side)).pixels
        grey = (pixels * 255 + 0.5).astype(np.uint8)
        cv2.imwrite(str(folder / f"{n:05d}.png"), grey)


def seconds_of(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def same_masks(a: Path, b: Path) -> bool:
    """Whether two run folders hold the same mask files, byte for byte."""
    names = [sorted(p.relative_to(out) for p in out.glob("masks/**/*.png")) for out in (a, b)]
    return names[0] == names[1] and all(
        (a / name).read_bytes() == (b / name).read_bytes() for name in names[0]
    )


def measure(bench: Bench, threads: int) -> dict[str, Any]:
    """Seconds of every stage alone, of the loop and of the runner."""
    with Decoders(threads, Limits()) as decoders, ThreadPoolExecutor(threads) as pool:
        bench.read(decoders, pool)  # starts the processes
        alone = {
            "read_image": seconds_of(lambda: bench.read(decoders, pool)),
            "compute_saliency": seconds_of(bench.compute_saliency),
            "refine_mask": seconds_of(lambda: bench.refine(pool)),
            "segment": seconds_of(bench.segment),
            "write_mask": seconds_of(lambda: bench.write(pool)),
        }
    start = time.perf_counter()
    looped = bench.loop()
    loop = time.perf_counter() - start
    streamed, stream = bench.stream()
    return {"alone": alone, "loop": loop, "stream": stream, "same": same_masks(looped, streamed)}


def compare(engine: Engine, count: int, side: int, repeats: int) -> dict[str, Any]:
    """The best of ``repeats`` measurements over ``count`` phantoms."""
    prompts = Prompts({target: (PROMPTS[target],) for target in TARGETS[MODALITIES[0]]})
    with tempfile.TemporaryDirectory() as scratch:
        write_phantoms(Path(scratch) / "archive", count, side)
        bench = Bench(engine, Path(scratch) / "archive", prompts, Path(scratch))
        runs = [measure(bench, engine.threads) for _ in range(repeats)]
    alone = {name: min(found["alone"][name] for found in runs) for name in runs[0]["alone"]}
    loop = min(found["loop"] for found in runs)
    best = min((found["stream"] for found in runs), key=lambda stream: stream["seconds"])
    slowest = max(alone, key=lambda name: alone[name])
    return {
        "images": count,
        "images_per_second": {
            **{f"{name} alone": round(count / value, 2) for name, value in alone.items()},
            "loop": round(count / loop, 2),
            "runner": round(count / best["seconds"], 2),
        },
        "runner_over_slowest_stage": round(alone[slowest] / best["seconds"], 3),
        "slowest_stage": slowest,
        "runner_over_loop": round(loop / best["seconds"], 3),
        "idle_while_queued": round(best["idle_queued"] / best["seconds"], 4),
        "same_masks_as_loop": all(found["same"] for found in runs),
        "stages": best["stages"],
    }


@click.command()
@click.option("--bundle", default="phantom", show_default=True)
@click.option("--count", default=36, show_default=True, help="Images; ten times with gradcam.")
@click.option("--side", default=160, show_default=True, help="Side of an image in pixels.")
@click.option("--repeats", default=3, show_default=True, help="The best of so many is taken.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("-o", "--out", default="benchmarks/results", show_default=True, type=Path)
def main(
    bundle: str, count: int, side: int, repeats: int, threads: int, device: str, out: Path
) -> None:
    """Writes streaming.md and streaming.json."""
    results = {}
    for saliency, images in (("", count), ("gradcam", 10 * count)):
        settings = {"saliency": {"method": saliency}} if saliency else {}
        engine = Engine.open(bundle, device, settings=settings, threads=threads)
        found = compare(engine, images, side, repeats)
        results[engine.config.saliency.method] = found
        click.echo(json.dumps({k: v for k, v in found.items() if k != "stages"}, indent=2))
    facts = {
        "command": f"python -m medclipsam.benchmarks.streaming --bundle {bundle} --count {count} "
        f"--side {side} --repeats {repeats} --threads {threads} --device {device}",
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "versions": {name: version(name) for name in ("medclipsam", "torch", "numpy")},
        "results": results,
    }
    write_durable(out / "data" / "streaming.json", (json.dumps(facts, indent=2) + "\n").encode())
    head = f"`{facts['command']}` on {facts['machine']}, torch {version('torch')}\n\n"
    tables = "\n".join(to_table(name, found) for name, found in results.items())
    write_durable(out / "streaming.md", (head + tables).encode())


def to_table(name: str, facts: dict[str, Any]) -> str:
    """The figures of one saliency method as Markdown."""
    lines = [
        f"## {name}, {facts['images']} images\n",
        "| | images/s |",
        "| --- | --- |",
        *(f"| {name} | {rate} |" for name, rate in facts["images_per_second"].items()),
        "",
        f"The runner reaches {facts['runner_over_slowest_stage']} of the slowest stage alone "
        f"({facts['slowest_stage']}) and {facts['runner_over_loop']} times the loop; its device "
        f"executor rested {facts['idle_while_queued']:.1%} of the time while work was queued. "
        f"Same masks as the loop: {facts['same_masks_as_loop']}.\n",
        "| stage in the runner | items | busy s | occupancy | mean waiting | most waiting |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {s['stage']} | {s['items']} | {s['busy']:.1f} | {s['occupancy']:.0%} "
            f"| {s['depth']:.1f} | {s['deepest']} |"
            for s in facts["stages"]
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
