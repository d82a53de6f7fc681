"""Which texts have passed before, of any number of them, in memory that does not grow."""

import hashlib
import sqlite3
from typing import Self

from medclipsam.engine.errors import OutputError

DIGEST = 16  # bytes kept of each: among 10⁹ texts two are confused with a chance of 10⁻²¹

COUNT = """
    INSERT INTO seen VALUES (?, 1) ON CONFLICT DO UPDATE SET times = times + 1 RETURNING times
"""


class Seen:
    """A set of texts that lies in a nameless temporary file; a context manager.

    SQLite holds a few pages of it in memory, the file is gone with the process.

    Raises:
        OutputError: the temporary folder is full.
    """

    def __init__(self) -> None:
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.execute("CREATE TABLE seen (digest BLOB PRIMARY KEY, times INTEGER) WITHOUT ROWID")
        self._db.execute("BEGIN")  # one that never ends: nothing of it is to be durable

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def add(self, text: str) -> bool:
        """Remember ``text``; False if it was there before."""
        return self.count(text) == 1

    def count(self, text: str) -> int:
        """Remember ``text``; how often it has come by, this time included."""
        data = text.encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(data, digest_size=DIGEST).digest()
        try:
            found = self._db.execute(COUNT, (digest,)).fetchone()
        except sqlite3.Error as exc:
            raise OutputError(
                f"cannot remember which items were listed ({exc}); free space in the temporary "
                "folder, or name another one in TMPDIR"
            ) from exc
        return int(found[0])
