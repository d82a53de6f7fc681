"""What an evaluation says, as table, CSV and JSON."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from medclipsam.engine.durable import write_durable
from medclipsam.engine.evaluation.difference import Comparison, Difference
from medclipsam.engine.evaluation.evaluate import FIGURES, Evaluation, Row
from medclipsam.engine.evaluation.interval import Interval

DIGITS = {"hd95": 2}  # all others have three
CAPTION = "mean [95 % bootstrap interval]; missing and unreadable masks count as 0"
HD95_CAPTION = "; HD95 without them and other infinite distances, which are counted as undefined"
AUC_CAPTION = "; AUC of the saliency maps, undefined without map and for an empty or full truth"


def write_cases_csv(evaluation: Evaluation, path: Path) -> None:
    """One line a true mask; figures with six decimals, ``inf`` and ``nan`` among them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("label", "item", "status", *FIGURES, "message"))
    for case in evaluation.cases:
        figures = (f"{getattr(case, name):.6f}" for name in FIGURES)
        writer.writerow((case.label, case.item, case.status, *figures, case.message))
    write_durable(path, text.getvalue().encode())


def to_table(evaluation: Evaluation) -> Table:
    """The summary for a terminal."""
    rows = evaluation.summary()
    names = shown_figures(rows)
    caption = explain(names)
    if evaluation.unmatched:
        caption += f"; {evaluation.unmatched} predictions without truth are not scored"
    table = Table(title="Evaluation", caption=caption)
    table.add_column("label")
    for name in ("n", "missing", "unreadable", *headings(names, evaluation.tolerance)):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_section() if row is rows[-1] else None
        counts = (str(row.n), str(row.missing), str(row.unreadable))
        table.add_row(escape(row.label), *counts, *cells(row, names))
    return table


def shown_figures(rows: Sequence[Row]) -> tuple[str, ...]:
    """Names of the figures to show: without any map there is no AUC."""
    without_maps = all(math.isnan(row.auc.mean) for row in rows)
    return tuple(name for name in FIGURES if not (name == "auc" and without_maps))


def explain(names: Sequence[str]) -> str:
    """What the figures of a table are, and what counts how."""
    return CAPTION + HD95_CAPTION * ("hd95" in names) + AUC_CAPTION * ("auc" in names)


def headings(names: Sequence[str], tolerance: float) -> list[str]:
    """Column heads of the figures."""
    known = {
        "dice": "DSC",
        "iou": "IoU",
        "nsd": f"NSD ({tolerance:g})",
        "hd95": "HD95",
        "auc": "AUC",
    }
    return [known[name] for name in names]


def cells(row: Row, names: Sequence[str]) -> list[str]:
    """The figures of one row."""
    return [show(name, getattr(row, name)) for name in names]


def show(name: str, interval: Interval, signed: bool = False) -> str:
    """One figure, with the decimals that suit it."""
    return interval.show(DIGITS.get(name, 3), signed)


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """The summary and every case of which something could not be scored, NaN as None."""
    *labels, overall = (without_nan(asdict(row)) for row in evaluation.summary())
    return {
        "tolerance": evaluation.tolerance,
        "unmatched": evaluation.unmatched,
        "labels": labels,
        "overall": overall,
        "problems": [
            {"label": c.label, "item": c.item, "status": c.status, "message": c.message}
            for c in evaluation.cases
            if c.status != "scored" or c.message
        ],
    }


def without_nan(value: Any) -> Any:
    """A nested value with None in the place of NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return None if value != value else value


def comparison_to_table(comparison: Comparison, tolerance: float) -> Table:
    """Paired differences for a terminal."""
    caption = (
        "first minus second, over the cases that both have; mean [95 % bootstrap interval]; "
        "p of Wilcoxon's signed-rank test, two-sided, uncorrected; HD95: lower is better"
    )
    if comparison.left_out:
        caption += f"; {len(comparison.left_out)} cases are left out, named with --json"
    table = Table(title="Paired comparison", caption=caption)
    for name in ("label", "figure"):
        table.add_column(name)
    for name in ("n", "first", "second", "difference", "p"):
        table.add_column(name, justify="right")
    for row in comparison.rows:
        if row.n:
            table.add_row(*_difference_cells(row, tolerance))
    return table


def _difference_cells(row: Difference, tolerance: float) -> list[str]:
    digits = DIGITS.get(row.figure, 3)
    return [
        escape(row.label),
        *headings([row.figure], tolerance),
        str(row.n),
        f"{row.first:.{digits}f}",
        f"{row.second:.{digits}f}",
        show(row.figure, row.difference, signed=True),
        show_p(row.p),
    ]


def show_p(p: float) -> str:
    """A probability with two digits that count."""
    return "–" if p != p else f"{p:.2g}" if p >= 1e-4 else "< 0.0001"


def comparison_to_json(comparison: Comparison) -> dict[str, Any]:
    """Every difference and every case that was left out, NaN as None."""
    return without_nan(asdict(comparison))
