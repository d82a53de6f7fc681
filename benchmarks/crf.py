"""Dense CRF and boxes: speed and error beside pydensecrf and OpenCV, in one run.

    python -m medclipsam.benchmarks.crf

Speed: one thread, after warm-up; solvers take turns, medians are compared. Ours
includes all that an image needs (choice of filter, norms), as pydensecrf's does. Error:
against all pairs summed in float64, where that is in reach. Scaling: images per second
of two Python threads over one.
"""

import gc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import torch

from medclipsam.benchmarks.inputs.scans import SCANS, blob
from medclipsam.benchmarks.measuring.machine import count_cores
from medclipsam.benchmarks.measuring.result import PAGES, RESULTS, open_facts, publish
from medclipsam.benchmarks.measuring.spread import Ratio, take_turns
from medclipsam.benchmarks.rivals.exact_crf import exact_marginal
from medclipsam.engine.boxes import extract_boxes
from medclipsam.engine.crf import CrfConfig, DenseCrf, dense_crf, warm_up

EXACT_SIDES = {True: 1024, False: 256}  # grey, colour: what float64 reaches in minutes
PATIENCE = 8.0  # seconds to spend on one row's timings
OPENCV = "connectedComponentsWithStats"

Row = dict[str, Any]


def compare(name: str, side: int, iterations: int, exact: bool) -> Row:
    """One row: time and error of both solvers on one made-up scan."""
    rng = np.random.default_rng([side, iterations])
    rgb, p = SCANS[name](side, rng), blob(side, rng)
    ours, theirs = (
        CrfConfig(iterations=iterations, solver=solver) for solver in ("numba", "pydensecrf")
    )
    found = take_turns(
        {
            "marginal": lambda: dense_crf(rgb, p, ours),
            "mask": lambda: DenseCrf(rgb, ours).mask(p),
            "pydensecrf": lambda: dense_crf(rgb, p, theirs),
        },
        turns=2,
        patience=PATIENCE,
    )
    q, q_published = dense_crf(rgb, p, ours), dense_crf(rgb, p, theirs)
    row = {
        "scan": name,
        "side": side,
        "iterations": iterations,
        "filter": DenseCrf(rgb, ours).kind,
        "ms": {name: round(1e3 * found.spread(name).median, 2) for name in found.seconds},
        "times faster": {
            name: found.times(name, "pydensecrf").to_json() for name in ("marginal", "mask")
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


def measure_scaling(side: int, images: int = 64) -> Row:
    """Images per second of one and two Python threads, grey, marginals."""
    rng = np.random.default_rng(0)
    work = [(SCANS["grey speckled"](side, rng), blob(side, rng)) for _ in range(4)]
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(2) as two:

        def label(pool: ThreadPoolExecutor) -> None:
            list(pool.map(lambda n: dense_crf(*work[n % len(work)]), range(images)))

        calls = {"1 threads": partial(label, one), "2 threads": partial(label, two)}
        found = take_turns(calls, turns=5, short=0)
    rates = {name: found.rate(name, images).to_json() for name in calls}
    return {**rates, "times": found.times("2 threads", "1 threads").to_json()}


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
        calls: dict[str, Callable[[], object]] = {
            "ours": partial(extract_boxes, mask),
            "contours": partial(published_box, mask),
            OPENCV: partial(cv2.connectedComponentsWithStats, mask.view(np.uint8)),
        }
        found = take_turns(calls, turns=2, patience=2.0)
        yield {
            "mask": name,
            "side": side,
            "ms": {name: round(1e3 * found.spread(name).median, 3) for name in calls},
            "times faster": {
                name: found.times("ours", name).to_json() for name in ("contours", OPENCV)
            },
        }


def to_markdown(facts: Mapping[str, Any]) -> str:
    """Speed and error of the CRF, two threads, boxes."""
    lines = [
        "One thread. Ratios are of pydensecrf's time to ours, made within each turn.",
        "",
        "| scan | side | iterations | pydensecrf ms | marginal ms | mask ms | marginal × | mask × "
        "| mean error, ours | pydensecrf | max error, ours | pydensecrf | IoU of labels |",
        "| --- " * 13 + "|",
    ]
    for row in facts["crf"]:
        ms, times = row["ms"], row["times faster"]
        cells = [row["scan"], row["side"], row["iterations"], ms["pydensecrf"], ms["marginal"]]
        cells += [ms["mask"], *(Ratio.from_json(times[n]).show(1) for n in ("marginal", "mask"))]
        for kind in ("mean", "max"):
            for who in ("ours", "pydensecrf"):
                cells.append(f"{row['error'][who][kind]:.1e}" if "error" in row else "")
        lines.append(f"| {' | '.join(map(str, [*cells, row['label IoU with pydensecrf']]))} |")
    lines += [
        "",
        "Two Python threads on two cores: "
        + "; ".join(
            f"{side}²: {Ratio.from_json(rates['times']).show()} the images per second of one "
            f"({rates['1 threads']['median']} → {rates['2 threads']['median']})"
            for side, rates in facts["scaling"].items()
        )
        + ".",
        "",
        f"| mask | side | ours ms | contours ms | × | {OPENCV} ms | × |",
        "| --- " * 7 + "|",
    ]
    for row in facts["boxes"]:
        ms, times = row["ms"], {n: Ratio.from_json(r) for n, r in row["times faster"].items()}
        cells = [row["mask"], row["side"], ms["ours"], ms["contours"], times["contours"].show(1)]
        lines.append(f"| {' | '.join(map(str, [*cells, ms[OPENCV], times[OPENCV].show(1)]))} |")
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
            times = [r["times faster"]["marginal"]["median"] for r in chosen]
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
@RESULTS
def main(sides: str, iterations: str, exact: bool, out: Path) -> None:
    """Dense CRF and boxes beside pydensecrf and OpenCV; writes crf.md, crf.json and crf.png."""
    cv2.setNumThreads(1)
    torch.set_num_threads(count_cores())
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
        **open_facts(("numba", "pydensecrf2")),
        "crf": rows,
        "scaling": {str(side): measure_scaling(side) for side in (512, 1024)},
        "boxes": [row for side in lengths for row in compare_boxes(side)],
    }
    publish(out, "crf", facts, to_markdown)
    plot(rows, out / PAGES / "crf.png")


if __name__ == "__main__":
    main()
