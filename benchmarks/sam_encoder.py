"""SAM's image encoder beside ``segment_anything``'s own, in one run: time, memory, difference.

    python -m medclipsam.benchmarks.sam_encoder

Random weights, relative positions included, float32, CPU. Time: ViT-B as runs use it, where a
batch goes over lanes of one thread, and ``segment_anything``'s with as many threads in one call;
both take turns, after a call each that does not count. A turn in which other programs took over
5 % of the cores' time is taken again. Memory: ViT-H at batch 1, each in a process
of its own, the highest resident memory during its first call minus that before.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from medclipsam.benchmarks.inputs.models import random_bundle
from medclipsam.benchmarks.measuring.machine import foreign_seconds
from medclipsam.benchmarks.measuring.result import RESULTS, open_facts, publish
from medclipsam.benchmarks.measuring.spread import Ratio, take_turns
from medclipsam.engine.backends import open_graph

CPU = torch.device("cpu")
SIDES = ("ours", "segment_anything")
Row = dict[str, Any]


def open_encoders(model: str) -> dict[str, Callable[[Tensor], Tensor]]:
    """Both encoders, on the same weights: (B, 3, S, S) → (B, C, g, g)."""
    bundle = random_bundle(model)
    sam: Any = bundle.sam
    ours = open_graph(bundle, "sam_encoder", CPU)
    return {"ours": ours, "segment_anything": torch.inference_mode()(sam.image_encoder)}


def draw(rows: int) -> Tensor:
    """(rows, 3, 1024, 1024) normalised pixels."""
    return torch.randn(rows, 3, 1024, 1024, generator=torch.Generator().manual_seed(1))


def compare_speed(encoders: dict[str, Callable[[Tensor], Tensor]], rows: int, turns: int) -> Row:
    """One batch size; the ratio is of the two calls of a turn."""
    pixels = draw(rows)
    ours, theirs = (encoders[side](pixels) for side in SIDES)
    calls = {side: partial(encoders[side], pixels) for side in SIDES}
    found = take_turns(calls, turns, warm_up=0, foreign=foreign_seconds)
    click.echo(json.dumps({"batch": rows, "s": found.seconds}))
    return {
        "batch": rows,
        "s": {side: found.spread(side).to_json() for side in SIDES},
        "times_faster": found.times(*SIDES).to_json(),
        "turns_taken_again": found.disturbed,
        "max_difference": float(f"{(ours - theirs).abs().max():.2g}"),
    }


def resident(kind: str) -> int:
    """Bytes of this process in memory: ``VmRSS`` now, ``VmHWM`` at most."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


def run_alone(model: str, side: str, threads: int, path: str) -> None:
    """One call in this process; keeps the embedding at ``path``, says the memory as JSON."""
    torch.set_num_threads(threads)
    run, pixels = open_encoders(model)[side], draw(1)
    Path("/proc/self/clear_refs").write_text("5", "utf-8")  # the peak so far is forgotten
    before = resident("VmRSS")
    embedding = run(pixels)
    more = resident("VmHWM") - before
    np.save(path, embedding.numpy())
    click.echo(json.dumps({"before_mib": before >> 20, "peak_mib": more >> 20}))


def compare_memory(model: str, threads: int) -> Row:
    """Peaks of both, each in a process of its own."""
    program = (
        "import sys; from medclipsam.benchmarks.sam_encoder import run_alone; "
        "run_alone(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])"
    )
    row: Row = {"model": model, "batch": 1}
    with tempfile.TemporaryDirectory() as folder:
        paths = [f"{folder}/{side}.npy" for side in SIDES]
        for side, path in zip(SIDES, paths, strict=True):
            done = subprocess.run(
                [sys.executable, "-c", program, model, side, str(threads), path],
                stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            row[side] = json.loads(done.stdout.splitlines()[-1])
        ours, theirs = map(np.load, paths)
    row["share"] = round(row["ours"]["peak_mib"] / row["segment_anything"]["peak_mib"], 3)
    row["max_difference"] = float(f"{abs(ours - theirs).max():.2g}")
    return row


def to_markdown(facts: Mapping[str, Any]) -> str:
    """Time and memory."""
    memory = facts["memory"]
    lines = [
        f"{facts['threads']} threads. ViT-B, random weights, float32, medians of "
        f"{facts['turns']} turns. Embeddings have a deviation of about 1.",
        "",
        "| batch | segment_anything s | ours s | times as fast | max difference |",
        "| --- " * 5 + "|",
    ]
    for row in facts["speed"]:
        cells = [row["batch"], *(row["s"][side]["median"] for side in reversed(SIDES))]
        cells += [Ratio.from_json(row["times_faster"]).show(), row["max_difference"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [
        "",
        f"ViT-H, one image: {memory['ours']['peak_mib']} MiB beyond what weights and image take, "
        f"segment_anything {memory['segment_anything']['peak_mib']} MiB "
        f"({memory['share']:.0%}); max difference {memory['max_difference']}.",
    ]
    return "\n".join(lines) + "\n"


@click.command(context_settings={"show_default": True})
@click.option("--threads", default=2, type=click.IntRange(1))
@click.option("--turns", default=5, type=click.IntRange(1))
@RESULTS
def main(threads: int, turns: int, out: Path) -> None:
    """SAM's encoder beside segment_anything's; writes sam_encoder.md and sam_encoder.json."""
    torch.set_num_threads(threads)
    facts: Row = {
        **open_facts(("segment-anything",)),
        "threads": threads,
        "turns": turns,
        "memory": compare_memory("vit_h", threads),
    }
    click.echo(json.dumps(facts["memory"]))
    speed = partial(compare_speed, open_encoders("vit_b"), turns=turns)
    facts["speed"] = [speed(rows) for rows in (1, 4)]
    publish(out, "sam_encoder", facts, to_markdown)


if __name__ == "__main__":
    main()
