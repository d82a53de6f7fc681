"""What a retrieval says, as table, Markdown and JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from medclipsam.engine.evaluation.interval import Interval
from medclipsam.engine.evaluation.table import show_p, without_nan
from medclipsam.train.retrieval.retrieval import (
    DIRECTIONS,
    TOPS,
    Gain,
    Retrieval,
    Retrievals,
    compare,
)

ARROWS = {"image_to_text": "I→T", "text_to_image": "T→I"}
GAIN_HEADS = ("bundle", "direction", "top", "difference", "better", "worse", "p")


def caption(found: Retrievals, pool: int | None) -> str:
    """What the numbers of the table are."""
    among = f"among {pool} drawn at random (mean over all draws)" if pool else "among all"
    return (
        "percent of images (I→T) and of captions (T→I) that find a partner, "
        f"{among}, with 95 % bootstrap interval; "
        f"{found.images} images, {found.texts} captions, {found.pairs} pairs; ties count against"
    )


def gain_caption(found: Retrievals) -> str:
    """What the paired differences are."""
    return (
        f"points over {found.models[0].name}, paired, with 95 % bootstrap interval; queries done "
        "better and worse; p of the exact sign test (McNemar's for hits), uncorrected"
    )


def to_tables(found: Retrievals, pool: int | None = None) -> list[Table]:
    """For a terminal: shares, and differences where there are several bundles."""
    heads, *rows = _rows(found, pool)
    table = _table("Retrieval", caption(found, pool), heads, rows)
    gains = compare(found, pool)
    if not gains:
        return [table]
    lines = [_gain_row(gain) for gain in gains]
    return [table, _table("Paired differences", gain_caption(found), GAIN_HEADS, lines)]


def to_markdown(found: Retrievals, pool: int | None = None) -> str:
    """The same in Markdown."""
    heads, *rows = _rows(found, pool)
    parts = [_markdown(heads, rows), _sentence(caption(found, pool))]
    gains = compare(found, pool)
    if gains:
        lines = [_gain_row(gain) for gain in gains]
        parts += [_markdown(GAIN_HEADS, lines), _sentence(gain_caption(found))]
    return "\n\n".join(parts) + "\n"


def to_json(found: Retrievals, pool: int | None = None) -> dict[str, Any]:
    """Shares in [0, 1], median ranks, differences and what was skipped; NaN as None."""
    rows = [
        {"bundle": model.name, **{way: _facts(model, way, pool) for way in DIRECTIONS}}
        for model in found.models
    ]
    return {
        "images": found.images,
        "texts": found.texts,
        "pairs": found.pairs,
        "pool": pool,
        "skipped": dict(found.problems),
        "rows": without_nan(rows),
        "differences": without_nan([asdict(gain) for gain in compare(found, pool)]),
    }


def _facts(model: Retrieval, way: str, pool: int | None) -> dict[str, Any]:
    shares = {f"top{top}": asdict(model.share(way, top, pool)) for top in TOPS}
    return {**shares, "median_rank": float(np.median(getattr(model, way).ranks))}


def _rows(found: Retrievals, pool: int | None) -> list[list[str]]:
    heads = ["bundle", *(f"{ARROWS[way]} top-{top}" for way in DIRECTIONS for top in TOPS)]
    rows = [
        [model.name, *(_percent(model.share(way, k, pool)) for way in DIRECTIONS for k in TOPS)]
        for model in found.models
    ]
    return [heads, *rows]


def _gain_row(gain: Gain) -> list[str]:
    return [
        gain.name,
        ARROWS[gain.direction],
        str(gain.top),
        _percent(gain.difference, signed=True),
        str(gain.better),
        str(gain.worse),
        show_p(gain.p),
    ]


def _percent(share: Interval, signed: bool = False) -> str:
    return Interval(100 * share.mean, 100 * share.low, 100 * share.high).show(1, signed)


def _table(title: str, about: str, heads: Any, rows: list[list[str]]) -> Table:
    table = Table(title=title, caption=about)
    for k, head in enumerate(heads):
        table.add_column(head, justify="right" if k else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _markdown(heads: Any, rows: list[list[str]]) -> str:
    lines = [list(heads), ["---", *["---:"] * (len(heads) - 1)]]
    lines += [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
