"""Which files of a folder are items.

Refuses to know what is in them, but for the four magic bytes of a DICOM file without
a suffix. Lazy: only one folder's entries are held at a time. Nothing that carries an
image suffix is dropped, whatever it turns out to be: reading it later says why it
cannot be used, and so it is accounted for.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from medclipsam.engine.errors import ConfigError
from medclipsam.engine.types import ItemRef

SUFFIXES = (
    ".nii.gz",
    ".png",
    ".jpg",
    ".jpeg",
    ".tif",
    ".tiff",
    ".bmp",
    ".dcm",
    ".dicom",
    ".ima",
    ".nii",
)


def known_suffix(name: str) -> str:
    """The image suffix ``name`` ends in, as written there, or empty."""
    lower = name.lower()
    return next((name[-len(s) :] for s in SUFFIXES if lower.endswith(s)), "")


class Listing:
    """The items under ``root`` in a fixed order: by name, folder by folder.

    Hidden files and folders (``.x``) and linked folders are passed over. A folder
    that may not be opened is listed itself, so that it ends up in quarantine.

    Attributes:
        ignored: suffix → number of files that are not images, filled while iterating.

    Raises:
        ConfigError: the root is missing, cannot be opened or holds no image.
    """

    def __init__(self, root: Path, exclude: Path | None = None):
        self.root = Path(root)
        self.ignored: Counter[str] = Counter()
        if not os.path.lexists(self.root):
            raise ConfigError(f"there is no archive at {self.root}; check the path")
        self._exclude = os.path.realpath(exclude) if exclude is not None else None
        if self._exclude == os.path.realpath(self.root):
            raise ConfigError(
                f"the output folder is the archive {self.root} itself; choose another one"
            )

    def __iter__(self) -> Iterator[ItemRef]:
        self.ignored = Counter()
        if not self.root.is_dir():
            yield ItemRef(self.root.name)
            return
        found = False
        for ref in self._walk():
            found = True
            yield ref
        if not found:
            others = ", ".join(f"{s or 'no suffix'} × {n}" for s, n in sorted(self.ignored.items()))
            raise ConfigError(
                f"found no images under {self.root}; expected files such as .png, .jpg, .tif, "
                f".dcm or .nii.gz, got {others or 'no files'}"
            )

    def _walk(self) -> Iterator[ItemRef]:
        top = os.path.realpath(self.root)
        try:
            pending = [iter(_entries(top))]
        except OSError as exc:
            raise ConfigError(f"cannot open {self.root}: {exc.strerror}") from exc
        while pending:
            entry = next(pending[-1], None)
            if entry is None:
                pending.pop()
                continue
            if entry.name.startswith(".") or entry.path == self._exclude:
                continue
            ref = ItemRef(entry.path[len(top) :].lstrip(os.sep).replace(os.sep, "/"))
            if entry.is_dir(follow_symlinks=False):
                try:
                    pending.append(iter(_entries(entry.path)))
                except OSError:  # no permission, or gone: reading it says which
                    yield ref
            elif self._is_item(entry):
                yield ref

    def _is_item(self, entry: os.DirEntry[str]) -> bool:
        # No look at the file itself unless its entry leaves a doubt: that is a round
        # trip a file on network storage.
        suffix = os.path.splitext(entry.name)[1]
        if _links_to_folder(entry):
            self.ignored["linked folder"] += 1
            return False
        if known_suffix(entry.name):
            return True
        bare = not suffix or suffix[1:].isdigit()
        candidate = bare and entry.name.upper() != "DICOMDIR"
        if candidate and _has_dicom_magic(entry):
            return True
        self.ignored[suffix.lower()] += 1
        return False


def list_items(root: Path, exclude: Path | None = None) -> Iterator[ItemRef]:
    """The items under ``root``, lazily; see :class:`Listing`."""
    return iter(Listing(root, exclude))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _links_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_symlink() and entry.is_dir()
    except OSError:  # a link to itself
        return False


def _has_dicom_magic(entry: os.DirEntry[str]) -> bool:
    try:
        if not entry.is_file():
            return False
        # Non-blocking: the file may have become a pipe since it was looked at.
        handle = os.open(entry.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return False
    try:
        return os.pread(handle, 4, 128) == b"DICM"
    except OSError:
        return False
    finally:
        os.close(handle)
