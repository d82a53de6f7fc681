"""What the documents say of speed and memory, and of errors where these are the price of speed.

A maker takes the results by name and gives the block of its name in ``MAKERS``. Refuses to know
what masks are worth.
"""

from collections.abc import Mapping
from typing import Any

from medclipsam.benchmarks.archive import PLAINLY
from medclipsam.benchmarks.figures.documents import Maker, Results
from medclipsam.benchmarks.figures.markdown import (
    bold,
    join,
    made_by,
    middle,
    paragraph,
    power,
    significant,
    table,
    times,
)
from medclipsam.benchmarks.measuring.spread import Spread
from medclipsam.benchmarks.rivals.published_saliency import CHUNK

SOLVERS = ("ours", "pydensecrf")
COLUMNS = ((512, 1), (1024, 1), (512, 5))  # side, iterations
QUICK = 0.1  # milliseconds, see ``medclipsam.engine.run.switching``


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


def streaming(results: Results) -> str:
    """The runner beside the loop."""
    facts = results["streaming"]
    head = paragraph(
        "Phantoms as PNG, two prompts; all stages share the cores. The same work was done in a",
        f"loop, image by image, with the same masks. {made_by(facts)}:",
    )
    rows = []
    for name, found in facts["results"].items():
        stage, rate = min(found["alone"].items(), key=lambda each: middle(each[1]))
        rows.append(
            [
                f"`{name}`",
                significant(middle(found["loop"])),
                bold(significant(middle(found["runner"]))),
                times(found["runner_over_loop"]),
                f"{middle(found['stages_over_run']):.0%}",
                f"{stage}, {significant(middle(rate))}",
            ]
        )
    heads = ["saliency", "loop, images/s", "runner, images/s", ""]
    heads += ["stages alone, of the runner's time", "slowest stage alone, images/s"]
    return join(head, table(heads, rows))


def switching(results: Results) -> str:
    """What the switch interval costs who launches work."""
    facts = results["switching"]
    rows = {row["interval_ms"]: row for row in facts["intervals"]}
    plain, quick = rows[max(rows)], rows[QUICK]
    alone, slow, fast = (
        significant(1e3 * middle(each))
        for each in (facts["alone"], plain["seconds"], quick["seconds"])
    )
    lost = 1 - quick["rounds"] / plain["rounds"]
    return paragraph(
        f"While a run goes on, Python switches threads every {QUICK:g} ms instead of",
        f"{max(rows):g} ms. Whoever launches work on a device lets go of the interpreter's lock",
        f"each time: {facts['launches']} such calls, for which `usleep` stands in, take {alone} ms",
        f"alone and {slow} ms beside one thread in plain Python; with {QUICK:g} ms they take",
        f"{fast} ms, and two such threads lose {lost:.0%} of their speed. {made_by(facts)}.",
    )


def archive(results: Results) -> str:
    """The runner by the share of images with the target, beside the published pipeline."""
    facts = results["archive"]
    found = facts["results"]
    head = paragraph(
        "These figures are of the runner over phantoms of ultrasound, two prompts. A share p of",
        "the images shows the first target, half of these the second one, too. Beside it ran the",
        "published pipeline written plainly with the same weights (image by image, gScoreCAM in",
        f"chunks of {CHUNK}, pydensecrf, `SamPredictor`), in turns. {made_by(facts)}:",
    )
    ours = _ours(found)
    names = {PLAINLY: "the published pipeline", ours: "the runner"}
    rows = []
    for name, title in names.items():
        shares = [Spread.from_json(r[name]["images_per_s"]) if name in r else None
                  for r in found.values()]  # fmt: skip
        cells = [rate.show(0 if rate.median >= 100 else 2) if rate else "" for rate in shares]
        rows.append([title, *cells])
    both = next(rows for rows in found.values() if PLAINLY in rows)
    share = next(name for name, rows in found.items() if PLAINLY in rows)
    quality = [rows[ours]["dsc"] for rows in found.values() if "dsc" in rows[ours]]
    said = [rows[ours]["absent_said"] for rows in found.values() if "absent_said" in rows[ours]]
    tail = paragraph(
        f"At p = {share} % the runner is {times(both[ours]['times_published'], 1)} as fast as the",
        f"published pipeline. The DSC of shown targets is {min(quality):.2f} to",
        f"{max(quality):.2f}, the published pipeline has {both[PLAINLY]['dsc']:.2f}. The runner",
        f"says {min(said):.0%} or more of the targets that are not shown to be absent, the",
        f"published pipeline {both[PLAINLY]['absent_said']:.0%}.",
    )
    return join(head, table(["images/s", *(f"p = {name} %" for name in found)], rows), tail)


def archive_short(results: Results) -> str:
    """The same in three sentences."""
    facts = results["archive"]
    found = facts["results"]
    ours = _ours(found)
    least, most = (found[name][ours] for name in (min(found, key=int), max(found, key=int)))
    share, both = next((name, rows) for name, rows in found.items() if PLAINLY in rows)
    return paragraph(
        "An image that shows nothing of what is asked costs one forward of CLIP. On",
        f"{facts['machine']}, a run labels {middle(least['images_per_s']):.0f} images/s of an",
        f"archive without any target, and {middle(most['images_per_s']):.1f} images/s where every",
        f"image shows one. At {share} % it is {middle(both[ours]['times_published']):.0f} times as",
        "fast as the published pipeline written plainly: see",
        "[archives that show little](docs/figures.md#archives-that-show-little).",
    )


def _ours(found: Mapping[str, Any]) -> str:
    """The name of the revision that was measured last: this one."""
    return [name for name in next(iter(found.values())) if name != PLAINLY][-1]


MAKERS: dict[str, Maker] = {
    "saliency-speed": saliency,
    "sam-encoder": sam_encoder,
    "memory": memory,
    "crf": crf,
    "crf-threads": crf_threads,
    "streaming": streaming,
    "switching": switching,
    "archive": archive,
    "archive-short": archive_short,
}
