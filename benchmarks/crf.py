"""Dense CRF and boxes: speed and error beside pydensecrf and OpenCV, in one run.

    python -m medclipsam.benchmarks.crf

Speed: one thread, after warm-up; solvers take turns, medians are compared. Ours
includes all that an image needs (choice of filter, norms), as pydensecrf's does. Error:
against all pairs summed in float64, where that is in reach. Scaling: images per second
of two Python threads over one.
"""

import gc
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import torch

from medclipsam.benchmarks.rivals.exact_crf import exact_marginal
from medclipsam.benchmarks.scans import SCANS, blob
from medclipsam.engine.boxes import extract_boxes
from medclipsam.engine.crf import CrfConfig, DenseCrf, dense_crf, warm_up
from medclipsam.engine.durable import write_durable

EXACT_SIDES = {True: 1024, False: 256}  # grey, colour: what float64 reaches in minutes
PATIENCE = 8.0  # seconds to spend on one row's timings

Row = dict[str, Any]


def take_turns(calls: Sequence[Callable[[], object]], patience: float) -> list[float]:
    """Median seconds of each call; they take turns until ``patience`` seconds are over.

    In its turn each is called three times and the first does not count, since the other
    has filled the caches; calls of over a second do not feel that and are called once.
    """
    seconds: list[list[float]] = [[] for _ in calls]
    started = time.perf_counter()
    while len(seconds[0]) < 2 or time.perf_counter() - started < patience:
        for call, spent in zip(calls, seconds, strict=True):
            first = _seconds(call)
            spent += [first] if first > 1 else [_seconds(call), _seconds(call)]
    return [float(np.median(spent)) for spent in seconds]


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def compare(name: str, side: int, iterations: int, exact: bool) -> Row:
    """One row: time and error of both solvers on one made-up scan."""
    rng = np.random.default_rng([side, iterations])
    rgb, p = SCANS[name](side, rng), blob(side, rng)
    ours, theirs = (
        CrfConfig(iterations=iterations, solver=solver) for solver in ("numba", "pydensecrf")
    )
    marginal, mask, published = take_turns(
        [
            lambda: dense_crf(rgb, p, ours),
            lambda: DenseCrf(rgb, ours).mask(p),
            lambda: dense_crf(rgb, p, theirs),
        ],
        PATIENCE,
    )
    q, q_published = dense_crf(rgb, p, ours), dense_crf(rgb, p, theirs)
    row = {
        "scan": name,
        "side": side,
        "iterations": iterations,
        "filter": DenseCrf(rgb, ours).kind,
        "ms": {
            "marginal": round(1e3 * marginal, 2),
            "mask": round(1e3 * mask, 2),
            "pydensecrf": round(1e3 * published, 2),
        },
        "times faster": {
            "marginal": round(published / marginal, 1),
            "mask": round(published / mask, 1),
        },
        "label IoU with pydensecrf": round(iou(q > 0.5, q_published > 0.5), 5),
    }
    if exact:
        truth = exact_marginal(rgb, p, ours)
        row["error"] = {
            "ours": errors(q, truth),
            "pydensecrf": errors(q_published, truth),
        }
    return row


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def errors(q: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    gap = np.abs(q - truth)
    return {"mean": float(f"{gap.mean():.3g}"), "max": float(f"{gap.max():.3g}")}


def measure_scaling(side: int, images: int = 64) -> dict[str, float]:
    """Images per second of one and two Python threads, grey, marginals."""
    rng = np.random.default_rng(0)
    work = [(SCANS["grey speckled"](side, rng), blob(side, rng)) for _ in range(4)]
    rates = {}
    for threads in (1, 2):
        with ThreadPoolExecutor(threads) as pool:

            def label(pool: ThreadPoolExecutor = pool) -> None:
                list(pool.map(lambda n: dense_crf(*work[n % len(work)]), range(images)))

            spent = [_seconds(label) for _ in range(5)]
        rates[f"{threads} threads"] = round(images / min(spent), 1)
    rates["times"] = round(rates["2 threads"] / rates["1 threads"], 2)
    return rates


def published_box(mask: np.ndarray) -> list[int]:
    """The published way: a heat map of 0…255, a threshold, contours, the largest's rectangle."""
    heat = (mask * 255).astype(np.uint8)
    _, binary = cv2.threshold(heat, int(0.5 * heat.max()), 255, cv2.THRESH_BINARY)
    contours = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    x, y, width, height = cv2.boundingRect(max(contours, key=cv2.contourArea))
    return [x, y, x + width, y + height]


def compare_boxes(side: int) -> Iterator[Row]:
    """Time of the largest component's box, on one blob and on speckle."""
    rng = np.random.default_rng(side)
    speckle = cv2.GaussianBlur(rng.normal(size=(side, side)), (0, 0), 4) > 0.05
    for name, mask in (("one blob", blob(side, rng) > 0.5), ("speckle", speckle)):
        calls = [
            lambda mask=mask: extract_boxes(mask),
            lambda mask=mask: published_box(mask),
            lambda mask=mask: cv2.connectedComponentsWithStats(mask.view(np.uint8)),
        ]
        ours, contours, stats = take_turns(calls, 2.0)
        yield {
            "mask": name,
            "side": side,
            "ms": {
                "ours": round(1e3 * ours, 3),
                "contours": round(1e3 * contours, 3),
                "connectedComponentsWithStats": round(1e3 * stats, 3),
            },
            "times faster": {
                "contours": round(contours / ours, 1),
                "connectedComponentsWithStats": round(stats / ours, 1),
            },
        }


def to_markdown(facts: Row) -> str:
    lines = [
        f"`{facts['command']}`, {facts['machine']}, one thread, "
        + ", ".join(f"{name} {number}" for name, number in facts["versions"].items()),
        "",
        "| scan | side | iterations | pydensecrf ms | marginal ms | mask ms | marginal × | mask × "
        "| mean error, ours | pydensecrf | max error, ours | pydensecrf | IoU of labels |",
        "| --- " * 13 + "|",
    ]
    for row in facts["crf"]:
        ms, times = row["ms"], row["times faster"]
        cells = [row["scan"], row["side"], row["iterations"], ms["pydensecrf"], ms["marginal"]]
        cells += [ms["mask"], times["marginal"], times["mask"]]
        for kind in ("mean", "max"):
            for who in ("ours", "pydensecrf"):
                cells.append(f"{row['error'][who][kind]:.1e}" if "error" in row else "")
        lines.append(f"| {' | '.join(map(str, [*cells, row['label IoU with pydensecrf']]))} |")
    lines += [
        "",
        "Two Python threads on two cores: "
        + "; ".join(
            f"{side}²: {rates['times']} times the images per second of one "
            f"({rates['1 threads']} → {rates['2 threads']})"
            for side, rates in facts["scaling"].items()
        )
        + ".",
        "",
        "| mask | side | ours ms | contours ms | × | connectedComponentsWithStats ms | × |",
        "| --- " * 7 + "|",
    ]
    for row in facts["boxes"]:
        ms, times = row["ms"], row["times faster"]
        other = "connectedComponentsWithStats"
        cells = [row["mask"], row["side"], ms["ours"], ms["contours"], times["contours"]]
        lines.append(f"| {' | '.join(map(str, [*cells, ms[other], times[other]]))} |")
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Speed-up over the image's side, and error of both solvers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (speed, error) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for name in SCANS:
        for iterations, style in ((1, "-o"), (5, "--s")):
            chosen = [r for r in rows if r["scan"] == name and r["iterations"] == iterations]
            if not chosen:
                continue
            colour = f"C{list(SCANS).index(name)}"
            sides = [r["side"] for r in chosen]
            label = f"{name}, {iterations} iteration{'s' * (iterations > 1)}"
            times = [r["times faster"]["marginal"] for r in chosen]
            speed.plot(sides, times, style, color=colour, label=label)
            judged = [r for r in chosen if "error" in r]
            theirs = [r["error"]["pydensecrf"]["mean"] for r in judged]
            ours = [r["error"]["ours"]["mean"] for r in judged]
            error.plot(theirs, ours, style[-1], color=colour)
    speed.set(
        xscale="log", yscale="log", xlabel="side in pixels", ylabel="times pydensecrf's speed"
    )
    sides = sorted({r["side"] for r in rows})
    speed.set_xticks(sides, map(str, sides))
    speed.minorticks_off()
    speed.set_yticks([2, 5, 10, 20, 40], ["2", "5", "10", "20", "40"])
    speed.grid(alpha=0.3)
    speed.legend(fontsize=7, ncols=2, loc=(0.22, 0.47))  # between grey and colour
    error.axline((1e-4, 1e-4), slope=1, color="grey", linewidth=0.8)
    error.axline((1e-3, 2e-4), (1e-2, 2e-3), color="grey", linewidth=0.8, linestyle=":")
    error.set(
        xscale="log", yscale="log",
        xlabel="pydensecrf's mean |ΔQ| to all pairs in float64",
        ylabel="ours (line: equal, dots: a fifth)",
    )  # fmt: skip
    error.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


@click.command()
@click.option("--sides", default="256,512,1024,2048", show_default=True)
@click.option("--iterations", default="1,5", show_default=True)
@click.option("--exact/--no-exact", default=True, show_default=True, help="Measure errors too.")
@click.option(
    "-o",
    "--out",
    default="benchmarks/results",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
)
def main(sides: str, iterations: str, exact: bool, out: Path) -> None:
    """Dense CRF and boxes beside pydensecrf and OpenCV; writes crf.md, crf.json and crf.png."""
    cv2.setNumThreads(1)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    warm_up(CrfConfig())
    rows = []
    lengths = [int(side) for side in sides.split(",")]
    for side in lengths:
        for name in SCANS:
            for count in map(int, iterations.split(",")):
                reach = EXACT_SIDES[name.startswith("grey")]
                rows.append(compare(name, side, count, exact and side <= reach))
                gc.collect()
                click.echo(json.dumps(rows[-1]))
    facts = {
        "command": f"python -m medclipsam.benchmarks.crf --sides {sides} --iterations {iterations}",
        "machine": f"{platform.machine()}, {processor()}, {len(os.sched_getaffinity(0))} cores",
        "versions": {
            name: version(name) for name in ("medclipsam", "numba", "numpy", "pydensecrf2")
        },
        "crf": rows,
        "scaling": {str(side): measure_scaling(side) for side in (512, 1024)},
        "boxes": [row for side in lengths for row in compare_boxes(side)],
    }
    out.mkdir(parents=True, exist_ok=True)
    write_durable(out / "data" / "crf.json", (json.dumps(facts, indent=2) + "\n").encode())
    write_durable(out / "crf.md", to_markdown(facts).encode())
    plot(rows, out / "crf.png")
    click.echo(to_markdown(facts))


def processor() -> str:
    """The processor's name as Linux gives it."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown processor"


if __name__ == "__main__":
    main()
