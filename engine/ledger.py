"""The truth about a run: one row per item and prompt, written after its files are durable.

A row is written once and never changed, only ``forget`` removes those of quarantined items;
whoever runs the same command again skips what has rows. SQLite with full synchronisation: a
row that was committed survives a power cut.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from medclipsam.engine.errors import OutputError
from medclipsam.engine.types import Outcome

_COLUMNS = (
    "item", "label", "status", "prompt", "stage", "reason", "message", "mask",
    "frames", "area", "figures", "boxes", "seconds",
)  # fmt: skip
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS outcomes (
    item TEXT NOT NULL, label TEXT NOT NULL, status TEXT NOT NULL
        CHECK (status IN ('done', 'absent', 'quarantined')),
    {", ".join(f"{name} TEXT NOT NULL" for name in _COLUMNS[3:8])},
    frames INTEGER NOT NULL, area INTEGER NOT NULL,
    figures TEXT NOT NULL, boxes TEXT NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (item, label)
) WITHOUT ROWID
"""


class Ledger:
    """An open ledger file, created when missing; a context manager.

    Args:
        path: the file.
        readonly: neither create nor change it; a run may be writing meanwhile.

    Raises:
        OutputError: the file is not a ledger or cannot be written.
    """

    def __init__(self, path: Path, readonly: bool = False):
        self.path = path
        try:
            if readonly:
                where = f"{path.resolve().as_uri()}?mode=ro"
                self._db = sqlite3.connect(where, uri=True, timeout=30)
                self._db.execute("SELECT 1 FROM outcomes LIMIT 1")
                return
            self._db = sqlite3.connect(path, isolation_level=None, timeout=30)
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute(_SCHEMA)
        except sqlite3.Error as exc:
            raise self._failure(exc) from exc

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def commit(self, outcomes: Iterable[Outcome]) -> None:
        """Add rows in one transaction: all of them, or none.

        Raises:
            OutputError: the disk is full, or a row exists already.
        """
        marks = ", ".join("?" for _ in _COLUMNS)
        rows = [_to_row(outcome) for outcome in outcomes]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(f"INSERT INTO outcomes VALUES ({marks})", rows)
            self._db.execute("COMMIT")
        except sqlite3.Error as exc:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise self._failure(exc) from exc

    def holds(self, item: str) -> bool:
        """Whether the item is accounted for."""
        query = "SELECT 1 FROM outcomes WHERE item = ? LIMIT 1"
        return self._db.execute(query, (item,)).fetchone() is not None

    def outcomes(self) -> Iterator[Outcome]:
        """All rows, sorted by item and label, read as they are needed."""
        query = f"SELECT {', '.join(_COLUMNS)} FROM outcomes ORDER BY item, label"
        try:
            for row in self._db.execute(query):
                yield _from_row(row)
        except sqlite3.Error as exc:
            raise self._failure(exc) from exc

    def counts(self) -> Counter[str]:
        """Rows per status."""
        query = "SELECT status, COUNT(*) FROM outcomes GROUP BY status"
        return Counter(dict(self._db.execute(query).fetchall()))

    def items(self) -> int:
        """Distinct items."""
        return self._db.execute("SELECT COUNT(DISTINCT item) FROM outcomes").fetchone()[0]

    def reasons(self) -> Counter[str]:
        """Quarantined items per reason."""
        query = (
            "SELECT reason, COUNT(DISTINCT item) FROM outcomes WHERE status = 'quarantined' "
            "GROUP BY reason"
        )
        return Counter(dict(self._db.execute(query).fetchall()))

    def forget(self, reasons: Iterable[str]) -> int:
        """Remove all rows of items quarantined for one of ``reasons``; returns how many items.

        Raises:
            OutputError: the file cannot be written.
        """
        wanted = list(reasons)
        marks = ", ".join("?" for _ in wanted)
        items = (
            "SELECT DISTINCT item FROM outcomes WHERE status = 'quarantined' "
            f"AND reason IN ({marks})"
        )
        try:
            count = self._db.execute(f"SELECT COUNT(*) FROM ({items})", wanted).fetchone()[0]
            self._db.execute(f"DELETE FROM outcomes WHERE item IN ({items})", wanted)
        except sqlite3.Error as exc:
            raise self._failure(exc) from exc
        return count

    def _failure(self, exc: sqlite3.Error) -> OutputError:
        return OutputError(
            f"the ledger {self.path} cannot be used ({exc}); free space or mend the folder, "
            "then run the same command again"
        )


def _to_row(outcome: Outcome) -> tuple:
    values = [getattr(outcome, name) for name in _COLUMNS]
    values[10] = json.dumps(outcome.figures, sort_keys=True)
    values[11] = json.dumps(outcome.boxes)
    return tuple(values)


def _from_row(row: tuple) -> Outcome:
    values = dict(zip(_COLUMNS, row, strict=True))
    values["figures"] = json.loads(values["figures"])
    values["boxes"] = json.loads(values["boxes"])
    return Outcome(**values)
