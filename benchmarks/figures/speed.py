"""What the documents say of speed and memory, and of errors where these are the price of speed.

A maker takes the results by name and gives the block of its name in ``MAKERS``. Refuses to know
what masks are worth.
"""

from collections.abc import Mapping
from typing import Any

from medclipsam.benchmarks.figures.documents import Maker, Results
from medclipsam.benchmarks.figures.markdown import (
    join,
    made_by,
    middle,
    paragraph,
    power,
    significant,
    table,
    times,
)

SOLVERS = ("ours", "pydensecrf")
COLUMNS = ((512, 1), (1024, 1), (512, 5))  # side, iterations


def saliency(results: Results) -> str:
    """gScoreCAM beside the published procedure."""
    facts = results["saliency"]
    least = facts["channels"][-1]["rows_per_image"]
    head = paragraph(
        f"{facts['model']}, k = {facts['k']}, float32, {facts['threads']} threads,",
        f"{facts['images']} image. A plain implementation of the published procedure ran in the",
        f"same run. {made_by(facts)}:",
    )
    rows = [
        [
            row["prompts"],
            f"{significant(row['straightforward_s_per_image'])} s",
            f"{significant(row['s_per_image'])} s",
            times(row["times_faster"]),
            f"{row['rows_per_image']:.0f} of {least:.0f}",
            f"{row['overhead_plain']:.2f}",
        ]
        for row in facts["gscorecam"]
    ]
    heads = ["prompts", "published procedure", "ours", "", "rows embedded"]
    heads.append("time over rows × best plain forward row")
    ceiling, best = facts["ceiling_gflop_per_s"], facts["best_row_s"]
    shares = [100 * row["score"]["gflop_per_s"] / ceiling for row in facts["batches"]]
    gap = max(row["max_difference"] for row in facts["gscorecam"])
    tail = paragraph(
        f"Maps of both differ by at most {power(gap)}. A row runs at",
        f"{min(shares):.0f}–{max(shares):.0f} % of the device's measured matrix-product ceiling",
        f"({ceiling:.0f} GFLOP/s). A row for which the last block is cut short costs",
        f"{best['score'] / best['plain']:.2f} of a plain forward.",
    )
    return join(head, table(heads, rows), tail)


def sam_encoder(results: Results) -> str:
    """SAM's image encoder beside ``segment_anything``'s."""
    facts = results["sam_encoder"]
    head = paragraph(
        f"ViT-B with random weights, float32, {facts['threads']} threads, medians of",
        f"{facts['turns']} turns. {made_by(facts)}:",
    )
    rows = []
    for row in facts["speed"]:
        theirs, ours = (middle(row["s"][side]) for side in ("segment_anything", "ours"))
        seconds = [f"{significant(theirs)} s", f"{significant(ours)} s"]
        rows.append([row["batch"], *seconds, times(row["times_faster"])])
    memory = facts["memory"]
    gap = max(row["max_difference"] for row in (*facts["speed"], memory))
    tail = paragraph(
        f"Embeddings differ by at most {power(gap)}. For one image, ViT-H takes",
        f"{memory['ours']['peak_mib']:,} MiB beyond its weights, where `segment_anything` takes",
        f"{memory['segment_anything']['peak_mib']:,} MiB.",
    )
    return join(head, table(["batch", "segment_anything", "ours", ""], rows), tail)


def memory(results: Results) -> str:
    """Peaks of runs over few and many images."""
    facts = results["memory"]
    few, many, stalled = (facts["results"][name] for name in ("few", "many", "stalled"))
    return paragraph(
        f"The process peaks at {many['peak_mib']:,} MiB over {many['items']:,} phantoms of",
        f"{facts['side']}², and at {few['peak_mib']:,} MiB over {few['items']:,}",
        f"({facts['many_over_few']:.2f} times). It peaks at {stalled['peak_mib']:,} MiB while the",
        f"disk hangs for {facts['stall_s']:g} s. {made_by(facts)}, with {facts['method']}.",
    )


def crf(results: Results) -> str:
    """Speed and error of the CRF."""
    facts = results["crf"]
    head = paragraph(
        "The table compares with pydensecrf in the same run: one thread, marginals. Errors are",
        "mean |ΔQ| against all pairs of pixels summed in float64, at one iteration.",
        f"{made_by(facts)}:",
    )
    heads = [f"{side}², {n} iteration{'s' * (n > 1)}" for side, n in COLUMNS]
    scans = dict.fromkeys(row["scan"] for row in facts["crf"])
    rows = [[scan, *_compare_solvers(facts, scan)] for scan in scans]
    return join(head, table(["scan", *heads, "error of ours / pydensecrf"], rows))


def _compare_solvers(facts: Mapping[str, Any], scan: str) -> list[str]:
    rows = {(row["side"], row["iterations"]): row for row in facts["crf"] if row["scan"] == scan}
    cells = []
    for column in COLUMNS:
        row = rows[column]
        theirs, ours = (significant(row["ms"][name]) for name in ("pydensecrf", "marginal"))
        cells.append(f"{theirs} → {ours} ms, {times(row['times faster']['marginal'], 1)}")
    side = max(side for (side, n), row in rows.items() if "error" in row and n == 1 and side <= 512)
    errors = (power(rows[side, 1]["error"][who]["mean"]) for who in SOLVERS)
    return [*cells, f"{' / '.join(errors)} ({side}²)"]


def crf_threads(results: Results) -> str:
    """Two threads, and boxes."""
    facts = results["crf"]
    (small, one), (large, two) = (
        (side, middle(rates["times"])) for side, rates in facts["scaling"].items()
    )
    boxes = {row["mask"]: row for row in facts["boxes"] if row["side"] == 512}
    blob, speckle = (boxes[name]["times faster"]["contours"] for name in ("one blob", "speckle"))
    return paragraph(
        f"Two Python threads on two cores label {one:.2f} times as many images per second as one",
        f"at {small}², and {two:.2f} times as many at {large}². The largest component's box takes",
        f"{significant(boxes['one blob']['ms']['ours'], 2)} ms at 512²: {middle(blob):.1f} times",
        f"less than the published contours, {middle(speckle):.1f} times less on speckle.",
    )


MAKERS: dict[str, Maker] = {
    "saliency-speed": saliency,
    "sam-encoder": sam_encoder,
    "memory": memory,
    "crf": crf,
    "crf-threads": crf_threads,
}
