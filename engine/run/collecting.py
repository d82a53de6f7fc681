"""From a run folder to data sets that a training reads: which cases, with which pictures."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from medclipsam.engine.archive import Archive, Decoders, Limits, open_archive
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.outputs import Case, Collected, collect
from medclipsam.engine.report.review import read_review
from medclipsam.engine.run.folder import FINGERPRINT, LEDGER, locked
from medclipsam.engine.run.ledger import Ledger
from medclipsam.engine.run.naming import HashedNames, PlainNames
from medclipsam.engine.types import Outcome

PICTURED = ("nnunet",)  # collections that hold pictures, which only the archive has


@dataclass(frozen=True)
class Selection:
    """Which cases of a run a collection may hold.

    Attributes:
        review: decisions of a person, see ``medclipsam.engine.report.review``.
        min_confidence: masks below it count as quarantined.
    """

    review: Path | None = None
    min_confidence: float = 0.0


def collect_run(folder: Path, formats: Sequence[str], selection: Selection) -> Collected:
    """Collect a run that is not running.

    Raises:
        ConfigError: no run folder, a running one, a review that does not fit it, or the
            archive of its pictures is gone.
        OutputError: the disk is full.
    """
    with locked(folder):
        if not (folder / LEDGER).exists():
            raise ConfigError(f"{folder} has no ledger yet; nothing can be collected")
        fingerprint = read_fingerprint(folder)
        archive = reopen_archive(fingerprint, folder) if set(formats) & set(PICTURED) else None
        names = HashedNames(folder, fresh=False) if fingerprint["hash_names"] else PlainNames()
        with Ledger(folder / LEDGER) as ledger:
            labels = fingerprint["labels"]
            return collect_cases(folder, ledger, names, labels, formats, selection, archive)


def collect_cases(
    folder: Path,
    ledger: Ledger,
    names: PlainNames | HashedNames,
    labels: Sequence[str],
    formats: Sequence[str],
    selection: Selection,
    archive: Archive | None,
    limits: Limits | None = None,
) -> Collected:
    """Collect what an open ledger holds; ``archive`` is needed where pictures are.

    Raises: as above.
    """
    decisions = read_review(selection.review, Pairs(ledger)) if selection.review else {}
    with Decoders(1, limits or Limits()) as decoders:
        found: Counter[str] = Counter()
        if archive is None:
            cases = _cases(ledger.outcomes())
        else:
            cases = _pictured(ledger, names, archive, decoders, found)
        least = selection.min_confidence
        collected = collect(
            folder, formats, (_withhold(c, least) for c in cases), labels, decisions
        )
    if archive is not None and (gone := ledger.items() - found["items"]):
        collected.left_out["not in the archive any more"] += gone
    return collected


class Pairs:
    """The (item, label) pairs of a ledger, as a container."""

    def __init__(self, ledger: Ledger):
        self._ledger = ledger

    def __contains__(self, pair: Any) -> bool:
        return any(row.label == pair[1] for row in self._ledger.rows(pair[0]))


def _cases(outcomes: Iterable[Outcome]) -> Iterator[Case]:
    for item, rows in groupby(outcomes, key=lambda row: row.item):
        yield Case(item, {row.label: row for row in rows})


def _pictured(
    ledger: Ledger,
    names: PlainNames | HashedNames,
    archive: Archive,
    decoders: Decoders,
    found: Counter[str],
) -> Iterator[Case]:
    """Cases in the archive's order, each with a way to its picture."""
    for entry in archive:
        item = names.name(entry.ref).id
        rows = ledger.rows(item)
        if not rows:
            continue
        found["items"] += 1

        def decode(entry=entry):
            decoded = decoders.decode(entry)
            return decoded.frames, decoded.grid

        yield Case(item, {row.label: row for row in rows}, decode)


def _withhold(case: Case, least: float) -> Case:
    """The case with masks below the least confidence marked as quarantined."""
    outcomes = {
        label: replace(row, status="quarantined", reason="low-confidence")
        if row.status == "done" and (row.figures.get("confidence") or 0.0) < least
        else row
        for label, row in case.outcomes.items()
    }
    return replace(case, outcomes=outcomes)


def read_fingerprint(folder: Path) -> dict[str, Any]:
    """What ``run.json`` says.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        fingerprint = json.loads((folder / FINGERPRINT).read_text("utf-8"))
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{folder / FINGERPRINT} cannot be read: {exc}") from exc
    if (
        not isinstance(fingerprint, dict)
        or "archive" not in fingerprint
        or "labels" not in fingerprint
    ):
        raise ConfigError(f"{folder / FINGERPRINT} is of another version of medclipsam")
    return fingerprint


def reopen_archive(fingerprint: dict[str, Any], folder: Path) -> Archive:
    """The archive that a run was made from.

    Raises:
        ConfigError: it is gone.
    """
    return open_archive(fingerprint["archive"], **fingerprint["selection"], avoid=folder)
