"""Predicted masks against true ones, folder against folder.

Refuses to know how masks were made. Truth decides what is counted: a true mask
without a prediction scores 0 and is named, never dropped.

    predictions/LABEL/a/b.png.png   ─┐
                                     ├─ label LABEL, key a/b
    truth/LABEL/a/b_mask.nii.gz     ─┘

What may stand in the place of predictions is a run folder, too: its ``masks/``, or its
``crf/``, and beside them the maps in its ``saliency/``.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from medclipsam.engine.errors import ConfigError, InputError
from medclipsam.engine.evaluation.interval import Interval
from medclipsam.engine.evaluation.metrics import dice, hd95, iou, nsd, roc_auc
from medclipsam.engine.evaluation.pairing import Files, files_by_label, match_files, walk_files
from medclipsam.engine.outputs import read_map, read_mask, safe_label
from medclipsam.engine.types import ItemRef

OVERALL = "overall"
FIGURES = ("dice", "iou", "nsd", "hd95", "auc")
PARTS = {"mask": "masks", "crf": "crf"}  # of a run, and their folders
MAPS = "saliency"  # folder of a run

Part = Literal["mask", "crf"]


@dataclass(frozen=True)
class Case:
    """One true mask and how well it was met.

    Attributes:
        item: path of the truth below its label.
        dice, iou, nsd: in [0, 1]; 0 where there is nothing to compare.
        hd95: in mm or pixels; infinite where exactly one mask is empty, or there is none.
        auc: of the saliency map; NaN where there is no map to read, or the truth is empty
            or full.
        message: what is wrong with a file.
    """

    label: str
    item: str
    dice: float = 0.0
    iou: float = 0.0
    nsd: float = 0.0
    hd95: float = float("inf")
    auc: float = float("nan")
    status: Literal["scored", "missing", "unreadable"] = "missing"
    message: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the summary.

    Cases that are missing or unreadable count as 0 in ``dice``, ``iou`` and ``nsd``; an
    infinite ``hd95`` and an undefined ``auc`` are left out of the mean and counted, see
    ``Interval.undefined``.
    """

    label: str
    n: int
    missing: int
    unreadable: int
    dice: Interval
    iou: Interval
    nsd: Interval
    hd95: Interval
    auc: Interval


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


def evaluate(
    predictions: Path, truth: Path, tolerance: float = 2.0, part: Part = "mask"
) -> Evaluation:
    """Score every true mask.

    Args:
        predictions: a run folder, or a folder of masks, with one sub-folder a label.
        truth: the same sub-folders; or, where there is one label only, its masks.
        tolerance: of the Normalised Surface Dice, in mm or pixels.
        part: which masks of a run: the final ones, or those of the CRF, before SAM.

    Raises:
        ConfigError: the folders do not fit each other, the run was made without that part,
            or two files claim one match.
    """
    if not tolerance >= 0 or tolerance == float("inf"):
        raise ConfigError(f"the tolerance must be at least 0, got {tolerance}")
    for role, folder in (("predictions", predictions), ("truth", truth)):
        if not folder.is_dir():
            raise ConfigError(f"there is no folder of {role} at {folder}; check the path")
    root = _root(predictions, part)
    maps = files_by_label(predictions / MAPS) if root != predictions else {}
    cases: list[Case] = []
    unmatched = 0
    for label, predicted, true in _labels(root, truth):
        pairs, left = match_files(label, predicted, true)
        shown, _ = match_files(label, maps.get(label, {}), true)
        unmatched += left
        for (path, mask, expected), (_, levels, _) in zip(pairs, shown, strict=True):
            cases.append(_score(Case(label, _name(path)), mask, levels, expected, tolerance))
    if all(case.status == "missing" for case in cases):
        raise ConfigError(
            f"none of the {len(cases)} masks of {truth} has a prediction: expected the paths "
            f"below the label to agree, got {_name(_example(truth))} as truth and "
            f"{_name(_example(root))} as prediction"
        )
    return Evaluation(tuple(cases), tolerance, unmatched)


def _root(predictions: Path, part: Part) -> Path:
    """The folder of the labels."""
    if part not in PARTS:
        raise ConfigError(f"the part is one of {', '.join(PARTS)}, got {part!r}")
    folder = predictions / PARTS[part]
    if folder.is_dir():
        return folder
    if part == "mask":
        return predictions
    raise ConfigError(
        f"{predictions} has no folder {PARTS[part]}/; expected a run made with --output {part}"
    )


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


def _score(
    case: Case, prediction: Path | None, saliency: Path | None, truth: Path, tolerance: float
) -> Case:
    if prediction is None and saliency is None:
        return replace(case, message="no prediction for this mask")
    try:
        expected, grid = read_mask(truth)
    except InputError as exc:
        return replace(case, status="unreadable", message=str(exc))
    if saliency is not None:
        case = _score_map(case, saliency, expected)
    if prediction is None:
        return replace(case, message=f"no prediction for this mask {case.message}".strip())
    try:
        found, own_grid = read_mask(prediction)
        _check_shape(found, expected)
    except InputError as exc:
        return replace(case, status="unreadable", message=f"{exc} {case.message}".strip())
    spacing = grid.spacing or own_grid.spacing
    return replace(
        case,
        dice=dice(found, expected),
        iou=iou(found, expected),
        nsd=nsd(found, expected, tolerance, spacing),
        hd95=hd95(found, expected, spacing),
        status="scored",
    )


def _score_map(case: Case, saliency: Path, expected: np.ndarray) -> Case:
    """A map that cannot be read costs its own figure only, and is named."""
    try:
        levels, _ = read_map(saliency)
        _check_shape(levels, expected)
    except InputError as exc:
        return replace(case, message=f"no AUC: {exc}")
    return replace(case, auc=roc_auc(levels, expected))


def _check_shape(found: np.ndarray, expected: np.ndarray) -> None:
    if found.shape != expected.shape:
        raise InputError(
            "evaluate",
            "unreadable",
            f"expected the shape {expected.shape} of the truth, got {found.shape}",
        )


def _row(label: str, cases: list[Case]) -> Row:
    return Row(
        label,
        len(cases),
        sum(case.status == "missing" for case in cases),
        sum(case.status == "unreadable" for case in cases),
        *(Interval.of([getattr(case, name) for case in cases]) for name in FIGURES),
    )


def _name(path: str) -> str:
    return ItemRef(path).id


def _names(labels: dict[str, Files]) -> str:
    return ", ".join(sorted(f"{_name(label)}/" for label in labels if label)) or "no folders"
