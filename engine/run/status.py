"""How far a run has come, read from its folder while it goes on."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from medclipsam.engine.errors import ConfigError
from medclipsam.engine.run.collecting import read_fingerprint, reopen_archive
from medclipsam.engine.run.folder import FINGERPRINT, LEDGER, LOG, SUCCESS, locked
from medclipsam.engine.run.ledger import Ledger


@dataclass(frozen=True)
class Status:
    """A run at one moment.

    Attributes:
        state: ``running``, ``finished`` or ``stopped``; the last resumes by its own command.
        items: items accounted for.
        total: items of the archive, None if it was not counted or is not there.
        counts: rows per status.
        reasons: quarantined items per reason.
        rate: items per second of the latest attempt, None before its second item.
        eta: seconds left at that rate, None where total or rate is unknown.
    """

    state: Literal["running", "finished", "stopped"]
    items: int
    total: int | None
    counts: dict[str, int]
    reasons: dict[str, int]
    rate: float | None
    eta: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def read_status(folder: Path, count: bool = True) -> Status:
    """The status of the run in ``folder``.

    Args:
        count: list the archive for the total; takes a while where it is large.

    Raises:
        ConfigError: it is no run folder.
        OutputError: its ledger cannot be read.
    """
    state = _state(folder)
    items, counts, reasons = 0, Counter[str](), Counter[str]()
    if (folder / LEDGER).exists():
        with Ledger(folder / LEDGER, readonly=True) as ledger:
            items, counts, reasons = ledger.items(), ledger.counts(), ledger.reasons()
    total = _count(folder) if count else None
    rate = _rate(folder / LOG)
    left = None if total is None or rate is None else max(0, total - items) / rate
    return Status(state, items, total, dict(counts), dict(reasons), rate, left)


def _state(folder: Path) -> Literal["running", "finished", "stopped"]:
    if not (folder / FINGERPRINT).is_file():
        raise ConfigError(f"{folder} is not a run folder; it has no {FINGERPRINT}")
    try:
        with locked(folder):
            return "finished" if (folder / SUCCESS).exists() else "stopped"
    except ConfigError:
        return "running"


def _count(folder: Path) -> int | None:
    try:
        return reopen_archive(read_fingerprint(folder), folder).count()
    except ConfigError:
        return None


def _rate(log: Path) -> float | None:
    """Items per second since the latest ``start`` in the log."""
    started, latest, items = 0.0, 0.0, 0
    try:
        with log.open(encoding="utf-8") as lines:
            for line in lines:
                if not line.endswith("\n"):
                    break  # being written
                event = json.loads(line)
                if event["event"] == "start":
                    started, items = event["time"], 0
                elif event["event"] in ("done", "quarantined"):
                    latest, items = event["time"], items + 1
    except (OSError, ValueError, KeyError):
        return None
    return items / (latest - started) if items > 1 and latest > started else None
