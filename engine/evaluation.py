"""Predicted masks against true ones, folder against folder.

Refuses to know how masks were made. Truth decides what is counted: a true mask
without a prediction scores 0 and is named, never dropped.

    predictions/LABEL/a/b.png.png   ─┐
                                     ├─ label LABEL, key a/b
    truth/LABEL/a/b_mask.nii.gz     ─┘
"""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.markup import escape
from rich.table import Table

from medclipsam.engine.durable import write_durable
from medclipsam.engine.errors import ConfigError, InputError
from medclipsam.engine.metrics import dice, iou, mean_interval, nsd
from medclipsam.engine.outputs import read_mask, safe_label
from medclipsam.engine.pairing import Files, files_by_label, match_files, walk_files
from medclipsam.engine.types import ItemRef

OVERALL = "overall"


@dataclass(frozen=True)
class Case:
    """One true mask and how well it was met; ``item`` is its path below the label."""

    label: str
    item: str
    dice: float
    iou: float
    nsd: float
    status: Literal["scored", "missing", "unreadable"]
    message: str = ""


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % bootstrap interval; NaN bounds where there is one case."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.low != self.low:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Row:
    """One line of the summary; cases that are missing or unreadable count as 0."""

    label: str
    n: int
    missing: int
    unreadable: int
    dice: Interval
    iou: Interval
    nsd: Interval


@dataclass(frozen=True)
class Evaluation:
    """Every true mask with its scores.

    Attributes:
        tolerance: of the Normalised Surface Dice, in mm where the spacing is known,
            in pixels elsewhere.
        unmatched: predictions for which there is no truth; they are not scored.
    """

    cases: tuple[Case, ...]
    tolerance: float
    unmatched: int = 0

    def summary(self) -> tuple[Row, ...]:
        """One row a label, in order of name, and one over all cases at the end."""
        labels = sorted({case.label for case in self.cases})
        rows = [_row(label, [c for c in self.cases if c.label == label]) for label in labels]
        return (*rows, _row(OVERALL, list(self.cases)))


def evaluate(predictions: Path, truth: Path, tolerance: float = 2.0) -> Evaluation:
    """Score every true mask.

    Args:
        predictions: a run folder, or a folder of masks, with one sub-folder a label.
        truth: the same sub-folders; or, where there is one label only, its masks.
        tolerance: of the Normalised Surface Dice, in mm or pixels.

    Raises:
        ConfigError: the folders do not fit each other, or two files claim one match.
    """
    if not tolerance >= 0 or tolerance == float("inf"):
        raise ConfigError(f"the tolerance must be at least 0, got {tolerance}")
    for role, folder in (("predictions", predictions), ("truth", truth)):
        if not folder.is_dir():
            raise ConfigError(f"there is no folder of {role} at {folder}; check the path")
    root = predictions / "masks" if (predictions / "masks").is_dir() else predictions
    cases: list[Case] = []
    unmatched = 0
    for label, predicted, true in _labels(root, truth):
        pairs, left = match_files(label, predicted, true)
        unmatched += left
        cases += [_score(label, *pair, tolerance) for pair in pairs]
    if all(case.status == "missing" for case in cases):
        raise ConfigError(
            f"none of the {len(cases)} masks of {truth} has a prediction: expected the paths "
            f"below the label to agree, got {_name(_example(truth))} as truth and "
            f"{_name(_example(root))} as prediction"
        )
    return Evaluation(tuple(cases), tolerance, unmatched)


def _labels(predictions: Path, truth: Path) -> list[tuple[str, Files, Files]]:
    """(label, predicted files, true files), for every label on either side."""
    predicted, true = files_by_label(predictions), files_by_label(truth)
    if not true:
        raise ConfigError(
            f"found no masks under {truth}; expected files such as .png, .tif or .nii.gz"
        )
    if not predicted:
        raise ConfigError(
            f"found no masks under {predictions}; expected a run folder or LABEL/… folders"
        )
    if "" in predicted:  # no label level
        return [(_name(predictions.resolve().name), _files(predictions), _files(truth))]
    for label in true.keys() - predicted.keys():  # the folder of "lung, left" is lung__left
        if safe_label(label) in predicted.keys() - true.keys():
            true[safe_label(label)] = true.pop(label)
    if not predicted.keys() & true.keys():
        if len(predicted) == 1:
            (label,) = predicted
            return [(_name(label), predicted[label], _files(truth))]
        raise ConfigError(
            f"no label folder of {truth} matches the predictions: expected "
            f"{_names(predicted)}, got {_names(true)}; rename the folders of the truth"
        )
    if "" in true:
        raise ConfigError(
            f"{truth} holds both label folders and masks outside of them, such as "
            f"{_name(next(iter(true[''])))}; move each mask into the folder of its label"
        )
    labels = sorted(predicted.keys() | true.keys())
    return [(_name(label), predicted.get(label, {}), true.get(label, {})) for label in labels]


def _files(root: Path) -> Files:
    return dict(walk_files(root))


def _example(root: Path) -> str:
    return next(walk_files(root))[0]


def _score(label: str, path: str, prediction: Path | None, truth: Path, tolerance: float) -> Case:
    item = _name(path)
    if prediction is None:
        return Case(label, item, 0.0, 0.0, 0.0, "missing", "no prediction for this mask")
    try:
        found, grid = read_mask(prediction)
        expected, true_grid = read_mask(truth)
    except InputError as exc:
        return Case(label, item, 0.0, 0.0, 0.0, "unreadable", str(exc))
    if found.shape != expected.shape:
        message = f"expected the shape {expected.shape} of the truth, got {found.shape}"
        return Case(label, item, 0.0, 0.0, 0.0, "unreadable", message)
    surface = nsd(found, expected, tolerance, true_grid.spacing or grid.spacing)
    return Case(label, item, dice(found, expected), iou(found, expected), surface, "scored")


def _row(label: str, cases: list[Case]) -> Row:
    return Row(
        label=label,
        n=len(cases),
        missing=sum(case.status == "missing" for case in cases),
        unreadable=sum(case.status == "unreadable" for case in cases),
        dice=Interval(*mean_interval([case.dice for case in cases])),
        iou=Interval(*mean_interval([case.iou for case in cases])),
        nsd=Interval(*mean_interval([case.nsd for case in cases])),
    )


def _name(path: str) -> str:
    return ItemRef(path).id


def _names(labels: dict[str, Files]) -> str:
    return ", ".join(sorted(f"{_name(label)}/" for label in labels if label)) or "no folders"


def write_cases_csv(evaluation: Evaluation, path: Path) -> None:
    """One line a true mask; figures with six decimals."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("label", "item", "status", "dice", "iou", "nsd", "message"))
    for case in evaluation.cases:
        figures = (f"{value:.6f}" for value in (case.dice, case.iou, case.nsd))
        writer.writerow((case.label, case.item, case.status, *figures, case.message))
    write_durable(path, text.getvalue().encode())


def to_table(evaluation: Evaluation) -> Table:
    """The summary for a terminal."""
    caption = "mean [95 % bootstrap interval]; missing and unreadable masks count as 0"
    if evaluation.unmatched:
        caption += f"; {evaluation.unmatched} predictions without truth are not scored"
    table = Table(title="Evaluation", caption=caption)
    table.add_column("label")
    for name in ("n", "missing", "unreadable", "DSC", "IoU", f"NSD ({evaluation.tolerance:g})"):
        table.add_column(name, justify="right")
    rows = evaluation.summary()
    for row in rows:
        table.add_section() if row is rows[-1] else None
        counts = (str(row.n), str(row.missing), str(row.unreadable))
        table.add_row(escape(row.label), *counts, *map(str, (row.dice, row.iou, row.nsd)))
    return table


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """The summary and every case that could not be scored, NaN as None."""
    *labels, overall = (_without_nan(asdict(row)) for row in evaluation.summary())
    return {
        "tolerance": evaluation.tolerance,
        "unmatched": evaluation.unmatched,
        "labels": labels,
        "overall": overall,
        "problems": [
            {"label": c.label, "item": c.item, "status": c.status, "message": c.message}
            for c in evaluation.cases
            if c.status != "scored"
        ],
    }


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    return None if value != value else value
