"""The truth about a run: one row per item and prompt, written after its files are durable.

A row is written once and never changed, only ``forget`` removes those of quarantined items;
whoever runs the same command again skips what has rows. SQLite with full synchronisation: a
row that was committed survives a power cut.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from medclipsam.engine.errors import OutputError
from medclipsam.engine.types import Outcome

_COLUMNS = (
    "item", "label", "status", "prompt", "stage", "reason", "message", "mask",
    "frames", "area", "figures", "boxes", "seconds", "digest", "geometry",
)  # fmt: skip
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS outcomes (
    item TEXT NOT NULL, label TEXT NOT NULL, status TEXT NOT NULL
        CHECK (status IN ('done', 'absent', 'quarantined')),
    {", ".join(f"{name} TEXT NOT NULL" for name in _COLUMNS[3:8])},
    frames INTEGER NOT NULL, area INTEGER NOT NULL,
    figures TEXT NOT NULL, boxes TEXT NOT NULL, seconds REAL NOT NULL, digest TEXT NOT NULL,
    geometry TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (item, label)
) WITHOUT ROWID
"""


VERSION = 3  # of the schema, in the file's user_version
BEFORE = 2  # a version that lacks the column geometry, and is brought up to date


class Ledger:
    """An open ledger file, created when missing; a context manager.

    ``commit`` and ``holds`` may be called from several threads.

    Args:
        path: the file.
        readonly: neither create nor change it; a run may be writing meanwhile.

    Raises:
        OutputError: the file is not a ledger or cannot be written.
    """

    def __init__(self, path: Path, readonly: bool = False):
        self.path = path
        self._lock = threading.Lock()
        try:
            if readonly:
                self._db = _open_existing(path)
            else:
                self._db = sqlite3.connect(
                    path, isolation_level=None, timeout=30, check_same_thread=False
                )
                self._db.execute("PRAGMA synchronous = FULL")
                if not self._db.execute("SELECT 1 FROM sqlite_master").fetchone():
                    self._db.execute(f"PRAGMA user_version = {VERSION}")
                self._db.execute(_SCHEMA)
                _bring_up_to_date(self._db)
            found = _version(self._db)
            present = _present(self._db)
        except sqlite3.Error as exc:
            raise self._failure(exc) from exc
        if found != VERSION and not (readonly and found == BEFORE):
            raise OutputError(
                f"the ledger {path} is of version {found}, this medclipsam writes {VERSION}; "
                "finish that run with the medclipsam it was begun with, or start another folder"
            )
        names = [name if name in present else f"'' AS {name}" for name in _COLUMNS]
        self._select = f"SELECT {', '.join(names)} FROM outcomes"

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
        with self._lock:
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
        with self._lock:
            return self._db.execute(query, (item,)).fetchone() is not None

    def rows(self, item: str) -> list[Outcome]:
        """The item's rows, by label; none if it is not accounted for."""
        query = f"{self._select} WHERE item = ? ORDER BY label"
        with self._lock:
            return [_from_row(row) for row in self._db.execute(query, (item,))]

    def duplicates(self) -> Iterator[tuple[str, list[str]]]:
        """Content digests that several items share, each with those items in order."""
        query = """
            SELECT digest, item FROM outcomes WHERE digest IN (
                SELECT digest FROM outcomes WHERE digest != ''
                GROUP BY digest HAVING COUNT(DISTINCT item) > 1)
            GROUP BY digest, item ORDER BY digest, item
        """
        for digest, rows in groupby(self._db.execute(query), key=lambda row: row[0]):
            yield digest, [item for _, item in rows]

    def outcomes(self) -> Iterator[Outcome]:
        """All rows, sorted by item and label, read as they are needed."""
        query = f"{self._select} ORDER BY item, label"
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

    def doubtful(self, frames: int = 1) -> int:
        """Items of at least so many frames, with masks, whose geometry is not known."""
        query = (
            f"SELECT COUNT(DISTINCT item) FROM ({self._select}) "
            "WHERE geometry != '' AND mask != '' AND frames >= ?"
        )
        return self._db.execute(query, (frames,)).fetchone()[0]

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


def _version(db: sqlite3.Connection) -> int:
    return db.execute("PRAGMA user_version").fetchone()[0]


def _present(db: sqlite3.Connection) -> list[str]:
    return [name for _, name, *_ in db.execute("PRAGMA table_info(outcomes)")]


def _bring_up_to_date(db: sqlite3.Connection) -> None:
    """Give a ledger of the version before the column that it lacks: all of that, or nothing."""
    if _version(db) != BEFORE:
        return
    with db:  # commits, or rolls back what failed
        db.execute("BEGIN IMMEDIATE")
        if _version(db) == BEFORE:  # else another process was faster
            db.execute("ALTER TABLE outcomes ADD COLUMN geometry TEXT NOT NULL DEFAULT ''")
            db.execute(f"PRAGMA user_version = {VERSION}")


def _open_existing(path: Path) -> sqlite3.Connection:
    """For reading; what a killed run left half written is rolled back first."""
    for mode in ("ro", "rw"):
        where = f"{path.resolve().as_uri()}?mode={mode}"
        db = sqlite3.connect(where, uri=True, timeout=30)
        try:
            db.execute("SELECT 1 FROM outcomes LIMIT 1")
            break
        except sqlite3.OperationalError as exc:
            db.close()
            if mode == "rw" or "readonly" not in str(exc):
                raise
    return db


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
