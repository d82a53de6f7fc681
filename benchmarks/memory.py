"""Peak memory of runs over few and over many images: it must not grow with the archive.

    python -m medclipsam.benchmarks.memory

Small phantoms, every run in a process of its own. The many are links to the few, which the
runner cannot know: each is read, segmented and written. A last run writes to a stalled disk,
which must stall it without growing it.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from threading import Event, Timer
from typing import Any

import click

from medclipsam.benchmarks.inputs.archive import write_phantoms
from medclipsam.benchmarks.measuring.result import RESULTS, open_facts, publish

FILES = 500  # distinct ones; the others are links
METHOD = "gradcam"  # of saliency


def link_archive(folder: Path, source: Path, count: int) -> None:
    """``count`` names for the images of ``source``, a thousand in each folder."""
    files = sorted(source.iterdir())
    for n in range(count):
        path = folder / f"{n // 1000:03d}" / f"{n:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(files[n % len(files)], path)


def run_alone(archive: str, out: str, threads: int, stall: float) -> None:
    """One run in this process; says its peak memory as JSON.

    With ``stall``, the first write of a mask hangs for so many seconds.
    """
    from medclipsam.engine.engine import Engine
    from medclipsam.engine.run import streaming

    settings = {"saliency": METHOD, "segment": {"batch": 4}}
    engine = Engine.open("phantom", "cpu", settings=settings, threads=threads)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if stall:
        hang = Event()
        Timer(stall, hang.set).start()
        finish = streaming.finish_work

        def stalled(*args: object) -> object:
            hang.wait()
            return finish(*args)  # type: ignore[arg-type]

        streaming.finish_work = stalled  # type: ignore[assignment]
    start = time.monotonic()
    summary = engine.run(archive, {"mass": "breast ultrasound showing a mass"}, out)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    facts = {"items": summary.items, "seconds": round(time.monotonic() - start, 1)}
    click.echo(json.dumps({**facts, "before_mib": before >> 10, "peak_mib": peak >> 10}))


@click.command()
@click.option("--few", default=1000, show_default=True)
@click.option("--many", default=10_000, show_default=True)
@click.option("--side", default=64, show_default=True, help="Side of an image in pixels.")
@click.option("--stall", default=60.0, show_default=True, help="Seconds that the disk hangs.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@RESULTS
def main(few: int, many: int, side: int, stall: float, threads: int, out: Path) -> None:
    """Writes memory.md and memory.json."""
    facts = {**open_facts(), "method": METHOD, "side": side, "files": FILES, "stall_s": stall}
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_phantoms(root / "source", FILES, side)
        for name, count, hang in (("few", few, 0.0), ("many", many, 0.0), ("stalled", few, stall)):
            link_archive(root / name, root / "source", count)
            program = (
                "import sys; from medclipsam.benchmarks.memory import run_alone; "
                "run_alone(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))"
            )
            command = [sys.executable, "-c", program, str(root / name), str(root / f"{name}-run")]
            done = subprocess.run(
                [*command, str(threads), str(hang)], stdout=subprocess.PIPE, text=True, check=True
            )
            results[name] = json.loads(done.stdout.splitlines()[-1])
            click.echo(json.dumps({name: results[name]}))
    peak = {name: found["peak_mib"] for name, found in results.items()}
    facts |= {
        "results": results,
        "many_over_few": round(peak["many"] / peak["few"], 4),
        "stalled_over_few": round(peak["stalled"] / peak["few"], 4),
    }
    publish(out, "memory", facts, to_markdown)


def to_markdown(facts: Mapping[str, Any]) -> str:
    """A row a run."""
    lines = [
        f"Phantoms of {facts['side']}², of which {facts['files']} are distinct and the others "
        f"links to them; {facts['method']}. In the last run the first write of a mask hangs for "
        f"{facts['stall_s']:g} s. Peaks are of the whole process.\n",
        "| run | images | s | MiB before | MiB at the peak | times the first peak |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    times = {"many": facts["many_over_few"], "stalled": facts["stalled_over_few"]}
    for name, row in facts["results"].items():
        cells = [name, row["items"], row["seconds"], row["before_mib"], row["peak_mib"]]
        lines.append(f"| {' | '.join(map(str, [*cells, times.get(name, '')]))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
