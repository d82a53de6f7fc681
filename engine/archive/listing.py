"""The items of a folder, in a fixed order: by name, folder by folder.

Refuses to know what is in them, but for the four magic bytes of a DICOM file without
a suffix, and, where series are wanted, the headers of DICOM files. Lazy: only one
folder's entries are held at a time.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from medclipsam.engine.archive.containers.blob import LocalBlob
from medclipsam.engine.archive.containers.items import list_members
from medclipsam.engine.archive.entry import Entry
from medclipsam.engine.archive.files import has_magic
from medclipsam.engine.archive.kinds import is_container
from medclipsam.engine.archive.limits import DEFAULT_LIMITS, Limits
from medclipsam.engine.archive.readers.dicom.series import group_series
from medclipsam.engine.archive.sieve import Sieve
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.types import ItemRef


class Folder:
    """Walks a folder.

    Hidden files and folders (``.x``) and linked folders are passed over, containers are
    replaced by their members. A folder that may not be opened is listed itself, so that
    it ends up in quarantine.

    Args:
        root: the folder.
        avoid: a folder below it that is passed over, such as the one written to.
        series: one entry for all DICOM files of a folder that make a volume.
        limits: caps on the members of containers.
    """

    def __init__(
        self,
        root: Path,
        avoid: Path | None = None,
        series: bool = False,
        limits: Limits = DEFAULT_LIMITS,
    ):
        self._root = root
        self._avoid = os.path.realpath(avoid) if avoid is not None else None
        self._series = series
        self._limits = limits

    def walk(self, sieve: Sieve) -> Iterator[Entry]:
        """Its items.

        Raises:
            ConfigError: the folder itself cannot be opened.
        """
        top = os.path.realpath(self._root)
        try:
            pending = [self._items(_entries(top), "", sieve)]
        except OSError as exc:
            raise ConfigError(f"cannot open {self._root}: {exc.strerror}") from exc
        while pending:
            found = next(pending[-1], None)
            if found is None:
                pending.pop()
            elif isinstance(found, Entry):
                yield found
            else:
                path = found.path[len(top) :].lstrip(os.sep).replace(os.sep, "/")
                try:
                    pending.append(self._items(_entries(found.path), f"{path}/", sieve))
                except OSError:  # no permission, or gone: reading it says which
                    yield _file_entry(found.path, path)

    def _items(
        self, entries: list[os.DirEntry[str]], prefix: str, sieve: Sieve
    ) -> Iterator[Entry | os.DirEntry[str]]:
        """The items and the folders of one folder."""
        grouped: dict[str, Entry | None] = {}
        if self._series:
            files = [e for e in entries if self._is_item(e, prefix + e.name, Sieve(sieve.patterns))]
            grouped = group_series([Path(entry.path) for entry in files], prefix)
        for entry in entries:
            path = prefix + entry.name
            if entry.name.startswith(".") or entry.path == self._avoid:
                continue
            if entry.is_dir(follow_symlinks=False):
                if not sieve.patterns.leave_out(f"{path}/"):
                    yield entry
            elif is_container(entry.name) and not _links_to_folder(entry):
                if not sieve.patterns.leave_out(path):
                    yield from list_members(LocalBlob(path, Path(entry.path)), sieve, self._limits)
            elif entry.name in grouped:
                series = grouped[entry.name]
                if series is not None:
                    yield series
            elif self._is_item(entry, path, sieve):
                yield _file_entry(entry.path, path)

    @staticmethod
    def _is_item(entry: os.DirEntry[str], path: str, sieve: Sieve) -> bool:
        # No look at the file itself unless its entry leaves a doubt: that is a round
        # trip a file on network storage.
        if _links_to_folder(entry):
            sieve.ignored["linked folder"] += 1
            return False
        return sieve.keep(path, partial(has_magic, Path(entry.path)))


def _file_entry(file: str, path: str) -> Entry:
    return Entry(ItemRef(path), files=(Path(file),))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _links_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_symlink() and entry.is_dir()
    except OSError:  # a link to itself
        return False
