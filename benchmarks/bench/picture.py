"""One picture of a result: where the time goes, how fast runs were, what a million images take."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np

from medclipsam.benchmarks.measuring.spread import Spread

COLOURS = "tab20"  # twenty, of which neighbours are alike in hue
LABELLED = 0.04  # share of a run from which on a stage is named in its bar


def draw(facts: Mapping[str, Any]) -> bytes:
    """The picture as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.2), layout="constrained")
    shares, rates, million = figure.subplot_mosaic(
        [["shares", "shares"], ["rates", "million"]], height_ratios=(1, 1.3)
    ).values()
    _draw_shares(shares, facts)
    _draw_rates(rates, facts)
    _draw_million(million, facts)
    used, source = facts["settings"], facts["input"]
    kind = "SYNTHETIC images" if source["synthetic"] else source["name"]
    rate = Spread.from_json(facts["images_per_s"]).show(1)
    figure.suptitle(
        f"{rate} images/s · {kind} · bundle {used['bundle']}, {used['saliency']}, "
        f"{used['precision']}\n{facts['machine']}",
        fontsize=10,
    )
    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def _colours(facts: Mapping[str, Any]) -> dict[str, Any]:
    palette = matplotlib.colormaps[COLOURS].colors  # type: ignore[attr-defined]
    order = (*palette[::2], *palette[1::2])
    return {row["stage"]: order[n] for n, row in enumerate(facts["stages"])}


def _draw_shares(axes: Any, facts: Mapping[str, Any]) -> None:
    """A bar for each of cores and device, in parts of stages; 100 % is a run."""
    places, colours = list(facts["sums"]), _colours(facts)
    left = dict.fromkeys(places, 0.0)
    for row in facts["stages"]:
        stage, where, share = row["stage"], row["on"], 100 * row["share"]
        place = places.index(where)
        axes.barh(place, share, left=left[where], color=colours[stage], label=stage)
        if row["share"] >= LABELLED:
            middle = left[where] + share / 2
            axes.text(middle, place, f"{share:.0f} %", ha="center", va="center", size=8)
        left[where] += share
    axes.axvline(100, color="black", linewidth=1)
    axes.set_yticks(range(len(places)), places)
    axes.set_ylim(len(places) - 0.4, -0.6)
    axes.set_xlabel("what each stage costs, in % of a run (line: the run)")
    axes.legend(ncols=6, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)


def _draw_rates(axes: Any, facts: Mapping[str, Any]) -> None:
    """Images/s of each stage alone, and of the run."""
    rows = [row for row in facts["stages"] if "images_per_s" in row]
    colours = _colours(facts)
    names = [*(row["stage"] for row in rows), "whole run"]
    rates = [Spread.from_json(row["images_per_s"]) for row in (*rows, facts)]
    medians = np.array([rate.median for rate in rates])
    spread = np.array([(rate.median - rate.low, rate.high - rate.median) for rate in rates]).T
    drawn = [*(colours[row["stage"]] for row in rows), "black"]
    axes.barh(range(len(names)), medians, xerr=spread, color=drawn, ecolor="grey")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="images/s, alone (of the images that come to it)")
    axes.grid(axis="x", alpha=0.3)


def _draw_million(axes: Any, facts: Mapping[str, Any]) -> None:
    """Hours over the share of images that show what is asked."""
    rows = sorted(facts["million"], key=lambda row: row["positives"])
    axes.plot([row["positives"] for row in rows], [row["hours"] for row in rows], "o-")
    for row in rows:
        place = row["positives"], row["hours"]
        axes.annotate(f"{row['hours']:g} h", place, (4, -12), textcoords="offset points", size=8)
        if row["own"]:
            axes.plot(*place, "ko", label="this sample")
    axes.set(xlabel="% of the images with the target", ylabel="hours for a million images")
    axes.set_ylim(0)
    axes.margins(x=0.12)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
