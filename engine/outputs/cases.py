"""Finished items as cases of a collection, and which of them may be used."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medclipsam.engine.errors import ConfigError, InputError
from medclipsam.engine.outputs.masks import read_mask
from medclipsam.engine.types import Grid, Outcome


@dataclass(frozen=True)
class Case:
    """One item of a run.

    Attributes:
        item: its id in the run folder.
        outcomes: label → its row of the ledger, for every label asked of the item.
        decode: gives the picture, uint8 (F, H, W, 3) as displayed, and its grid, or raises
            InputError; only the collection ``nnunet`` calls it.
    """

    item: str
    outcomes: Mapping[str, Outcome]
    decode: Callable[[], tuple[np.ndarray, Grid]] | None = None


def reason_against(case: Case, decisions: Mapping[tuple[str, str], str]) -> str:
    """Why a case must be left out as a whole, or empty.

    One label that is rejected, unsure or quarantined is enough: what else is seen on the
    picture cannot be said. ``accept`` admits a label quarantined with a mask, as those of
    low confidence are.

    Args:
        decisions: (item, label) → accept, reject or unsure.
    """
    for label, outcome in case.outcomes.items():
        decision = decisions.get((case.item, label))
        if decision in ("reject", "unsure"):
            return "rejected in review" if decision == "reject" else "unsure in review"
        admitted = decision == "accept" and outcome.mask
        if outcome.status == "quarantined" and not admitted:
            return f"quarantined: {outcome.reason}"
    return ""


def read_masks(folder: Path, case: Case) -> dict[str, np.ndarray]:
    """label → bool (F, H, W), read from the run folder.

    Raises:
        ConfigError: a mask file is missing or damaged, or they differ in shape.
    """
    masks = {}
    for label, outcome in case.outcomes.items():
        try:
            masks[label], _ = read_mask(folder / outcome.mask)
        except InputError as exc:
            raise ConfigError(
                f"the mask {folder / outcome.mask} cannot be read ({exc}); the run folder was "
                "altered: remove the item's rows with medclipsam retry, or run it again"
            ) from exc
    shapes = {mask.shape for mask in masks.values()}
    if len(shapes) != 1:
        raise ConfigError(
            f"expected masks of one shape for {case.item!r}, got {sorted(shapes)}; "
            "the run folder was altered: run it again"
        )
    return masks
