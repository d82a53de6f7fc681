"""What a retrieval says, as table, Markdown and JSON."""

from collections.abc import Iterator
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
GAIN_HEADS = ["bundle", "direction", "top", "difference", "better", "worse", "p"]


def to_tables(found: Retrievals, pool: int | None = None) -> list[Table]:
    """For a terminal: shares, and differences where there are several bundles."""
    tables = []
    for title, about, heads, rows in _parts(found, pool):
        table = Table(title=title, caption=about)
        for k, head in enumerate(heads):
            table.add_column(head, justify="right" if k else "left")
        for row in rows:
            table.add_row(*map(escape, row))
        tables.append(table)
    return tables


def to_markdown(found: Retrievals, pool: int | None = None) -> str:
    """The same in Markdown."""
    texts = []
    for _, about, heads, rows in _parts(found, pool):
        lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
        lines += [[cell.replace("|", "\\|") for cell in row] for row in rows]
        texts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        texts.append(f"{about[0].upper()}{about[1:]}.")
    return "\n\n".join(texts) + "\n"


def _parts(
    found: Retrievals, pool: int | None
) -> Iterator[tuple[str, str, list[str], list[list[str]]]]:
    """(title, what the numbers are, heads, rows) of each table."""
    among = f"among {pool} drawn at random (mean over all draws)" if pool else "among all"
    about = (
        "percent of images (I→T) and of captions (T→I) that find a partner, "
        f"{among}, with 95 % bootstrap interval; "
        f"{found.images} images, {found.texts} captions, {found.pairs} pairs; ties count against"
    )
    heads = ["bundle", *(f"{ARROWS[way]} top-{top}" for way in DIRECTIONS for top in TOPS)]
    rows = [
        [model.name, *(_percent(model.share(way, k, pool)) for way in DIRECTIONS for k in TOPS)]
        for model in found.models
    ]
    yield "Retrieval", about, heads, rows
    if gains := compare(found, pool):
        about = (
            f"points over {found.models[0].name}, paired, with 95 % bootstrap interval; queries "
            "done better and worse; p of the exact sign test (McNemar's for hits), uncorrected"
        )
        yield "Paired differences", about, GAIN_HEADS, [_gain_row(gain) for gain in gains]


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
