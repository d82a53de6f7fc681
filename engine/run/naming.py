"""What an item is called in the run folder: as in the archive, or hashed.

File names of hospitals may hold names of patients. With hashed names the run folder shows
none of them outside ``private/``, which its owner alone can read: the key of the hash,
without which nobody can try names, and the list that leads back.
"""

import csv
import hashlib
import hmac
import io
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from medclipsam.engine.archive.kinds import known_suffix
from medclipsam.engine.durable import write_durable
from medclipsam.engine.errors import ConfigError, OutputError
from medclipsam.engine.types import ItemRef

PRIVATE, KEY, NAMES = "private", "key", "names.csv"
DIGITS = 32  # hexadecimal digits of a hashed name: 128 bits


class PlainNames:
    """Every item keeps its name."""

    def name(self, ref: ItemRef) -> ItemRef:
        """The item's name in the run folder."""
        return ref

    def record(self, refs: Iterable[ItemRef]) -> None:
        """Nothing has to be remembered."""


class HashedNames:
    """HMAC-SHA256 of the item's id under a key made once for the run folder.

    Raises:
        OutputError: the key cannot be written.
        ConfigError: the folder holds rows of hashed names but no key.
    """

    def __init__(self, folder: Path, fresh: bool):
        self._folder = folder / PRIVATE
        path = self._folder / KEY
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            if not path.exists():
                if not fresh:
                    raise ConfigError(
                        f"{path} is gone, so that items of this run cannot be told from new "
                        "ones; put it back, or start another run folder"
                    )
                write_durable(path, secrets.token_hex(32).encode(), 0o600)
            self._key = path.read_bytes()
        except OSError as exc:
            raise OutputError(f"cannot use {self._folder}: {exc.strerror}") from exc

    def name(self, ref: ItemRef) -> ItemRef:
        """``ab/abcd….png`` for any id; the suffix is kept, 256 folders hold the files."""
        digest = hmac.new(self._key, ref.id.encode(), hashlib.sha256).hexdigest()[:DIGITS]
        return ItemRef(f"{digest[:2]}/{digest}{known_suffix(ref.path).lower()}")

    def record(self, refs: Iterable[ItemRef]) -> None:
        """Append to ``names.csv`` durably; after a crash a line may stand there twice."""
        stream = io.StringIO()
        csv.writer(stream).writerows((self.name(ref).id, ref.id) for ref in refs)
        path = self._folder / NAMES
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with open(handle, "wb") as file:
                if os.fstat(handle).st_size == 0:
                    file.write(b"name,item\r\n")
                file.write(stream.getvalue().encode())
                file.flush()
                os.fsync(handle)
        except OSError as exc:
            raise OutputError(f"cannot write {path}: {exc.strerror}") from exc
