"""What all parts have found, on one page."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medclipsam.benchmarks.measuring.spread import Spread

Facts = Mapping[str, Any]


def summarise(out: Path, states: Mapping[str, str]) -> str:
    """Tables of every part whose JSON lies in ``out``."""
    found = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(out.glob("*.json"))}
    lines = ["# A GPU machine\n"]
    for facts in list(found.values())[:1]:
        versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
        lines += [
            f"{facts['date']}, revision {facts['revision']}; {facts['machine']}; {versions}\n"
        ]
    if any(facts["tiny"] for facts in found.values()):
        lines += ["Tiny settings: no figure here is one of the device.\n"]
    missing = [f"{name} ({state})" for name, state in states.items() if name not in found]
    if missing:
        lines += [f"Not here: {', '.join(missing)}.\n"]
    if "masks" in found:
        heads = ("method", "precision", "mean IoU", "worst IoU", "masks")
        lines += _table("Masks beside float32 torch on the CPU", heads, _masks(found, "masks"))
    if "backends" in found:
        heads = ("backend", "precision", "mean IoU", "worst IoU", "masks")
        lines += _table(
            "Backends beside float32 torch on the CPU", heads, _masks(found, "backends")
        )
    if "runner" in found:
        run = found["runner"]
        lines += [
            f"Runner over {run['images']} images, {run['precision']}: masks of the loop "
            f"{_yes(run['same_masks_as_loop'])}, the same again {_yes(run['same_masks_again'])}.\n"
        ]
    ceiling = {row["precision"]: row["tflops"] for row in found.get("ceiling", {}).get("rows", [])}
    if ceiling:
        rows = [(name, f"{value:.3g}") for name, value in ceiling.items()]
        lines += _table("Matrix products", ("precision", "TFLOP/s"), rows)
    for name, facts in found.items():
        if name.startswith("rates-"):
            lines += _rates(facts, ceiling.get(facts["precision"]))
    return "\n".join(lines) + "\n"


def _masks(found: Facts, part: str) -> Iterable[Sequence[str]]:
    for row in found[part]["rows"]:
        kind = row.get("method") or row["backend"]
        if "refused" in row:
            yield kind, row["precision"], f"refused: {row['refused']}", "", ""
        else:
            figures = (f"{row['mean_iou']:.4f}", f"{row['worst_iou']:.4f}", str(row["masks"]))
            yield kind, row["precision"], *figures


def _rates(facts: Facts, ceiling: float | None) -> list[str]:
    title = f"BiomedCLIP and SAM {facts['sam']}, {facts['precision']}, weights {facts['weights']}"
    refused = [f"Refused: {facts['refused']}\n"] if "refused" in facts else []
    if "graphs" not in facts:
        return [f"## {title}\n", *refused]
    graphs = []
    for row in facts["graphs"]:
        share = f"{row['tflops'] / ceiling:.0%}" if ceiling and "tflops" in row else ""
        rate = Spread.from_json(row["per_s"]).show(1)
        graphs.append((row["graph"], str(row["batch"]), rate, str(row.get("tflops", "")), share))
    heads = ("graph", "batch", "per second", "TFLOP/s", "of the products' ceiling")
    lines = _table(title, heads, graphs)
    runs = [
        (
            row["method"],
            Spread.from_json(row["images_per_s"]).show(),
            f"{row['device_busy']:.0%}",
            f"{row['device_gib']:.1f}" if row["device_gib"] is not None else "",
        )
        for row in facts.get("runs", ())
    ]
    columns = ("whole run", "images/s", "device busy", "device GiB")
    return [*lines, *(_table("", columns, runs) if runs else refused)]


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    bars = ["---"] * len(heads)
    lines = [f"| {' | '.join(line)} |" for line in (heads, bars, *rows)]
    return [*([f"## {title}\n"] if title else []), *lines, ""]


def _yes(value: bool) -> str:
    return "yes" if value else "NO"
