"""Names of what a run writes: one for each item, whatever its own name is.

Refuses to know what the files hold.
"""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from medclipsam.engine.archive.kinds import known_suffix
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.types import ItemRef

MASK_SUFFIXES = (".png", ".tif", ".nii.gz")
NAME_BYTES = 240  # file systems allow 255; the rest is for temporary names
PATH_BYTES = 1000  # of a path below the run folder
PATH_MAX = 4096  # of any path on Linux, its end mark included
CUT = re.compile(r"#[0-9a-f]{16}")  # how the name of a cut one ends


def output_path(parts: Sequence[str], ref: ItemRef, suffix: str) -> PurePosixPath:
    """Where a file made of an item goes, relative to the run folder.

    The tree under the folders ``parts`` mirrors the archive's. An item's whole name is
    kept, and ``suffix`` appended unless it is there already: ``a/b.png`` → ``a/b.png``,
    ``a/b.dcm`` → ``a/b.dcm.png``, ``s.nii`` → ``s.nii.nii.gz``. Two marks keep apart
    what would coincide, without a look at other items:

    - ``~`` follows a name without an image suffix: ``IM1`` → ``IM1~.png``, because an
      item ``IM1.png`` keeps its name;
    - ``+`` follows a name that another item may be given: ``b.dcm.png`` →
      ``b.dcm+.png``, a folder called like a file of this tree, ``x.png/`` → ``x.png+/``,
      and a folder that would lead elsewhere, ``../`` → ``..+/``.

    Bytes that are not UTF-8 are written as ``\\xNN``, and ``\\`` itself twice. Names
    beyond 240 bytes are cut and end in a hash. Of paths beyond 1000 bytes the first folders
    and the name are kept, with a hash of the whole path. A name that ends as a cut one does
    gets a ``+``, too.

    A tree holds files with suffixes of :data:`MASK_SUFFIXES`, or with one other suffix.
    """
    *folders, name = (_printable(part) for part in ref.path.split("/"))
    marked = (*(MASK_SUFFIXES if suffix in MASK_SUFFIXES else (suffix,)), "+")
    folders = [
        f"{f}+" if f in ("", ".", "..") or f.endswith(marked) or CUT.fullmatch(f[-17:]) else f
        for f in folders
    ]
    if name.endswith(suffix):
        stem = name[: -len(suffix)]
        clash = known_suffix(stem) or stem.endswith(("~", "+")) or CUT.fullmatch(stem[-17:])
        name = f"{stem}+" if clash else stem
    elif not known_suffix(name):
        name = f"{name}~"
    path = PurePosixPath(*parts, *(_fit(folder, "") for folder in folders), _fit(name, suffix))
    if len(str(path).encode()) <= PATH_BYTES:
        return path
    return _shorten(path, name, suffix)


def _shorten(path: PurePosixPath, name: str, suffix: str) -> PurePosixPath:
    """A path that fits: the first folders of ``path``, and ``name`` with its hash."""
    last = _cut(name, str(path).encode(), suffix)
    kept = PurePosixPath()
    for part in path.parts[:-1]:
        if len(str(kept / part / last).encode()) > PATH_BYTES:
            break
        kept /= part
    return kept / last


def check_folder(folder: Path) -> None:
    """Refuse a run folder whose own path leaves no room for those of its files.

    Raises:
        ConfigError: it is too long.
    """
    most = PATH_MAX - PATH_BYTES - 500  # for what is put around an item's path
    if len(os.fsencode(folder)) > most:
        raise ConfigError(
            f"expected an output folder with a path of at most {most} bytes, got one of "
            f"{len(os.fsencode(folder))}; choose one nearer to the root, or a relative path"
        )


def mask_path(label: str, ref: ItemRef, suffix: str) -> PurePosixPath:
    """Where an item's mask goes: ``masks/LABEL/…``, see :func:`output_path`."""
    return output_path(("masks", safe_label(label)), ref, suffix)


def preview_path(label: str, item: str) -> PurePosixPath:
    """Where the preview of an item with the id ``item`` goes.

    ``report/previews/LABEL/`` mirrors the archive's tree and adds ``.jpg`` to the item's name.
    A name that no folder can hold so, or that might leave it, is replaced by its hash.
    """
    name = item.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    *folders, _ = parts = f"{name}.jpg".split("/")
    mirrored = (
        all(part not in ("", ".", "..") and len(part.encode()) <= NAME_BYTES for part in parts)
        and len(name.encode()) <= PATH_BYTES
        and name.rpartition("/")[2] != ""
        and "\0" not in name
        and not any(part.endswith(".jpg") for part in folders)  # "x.jpg/" beside an item "x"
    )
    if not mirrored:
        parts = [hashlib.sha256(name.encode()).hexdigest() + ".jpg"]
    return PurePosixPath("report", "previews", safe_label(label), *parts)


def _printable(part: str) -> str:
    return ItemRef(part).id


def _fit(stem: str, suffix: str) -> str:
    data = (stem + suffix).encode()
    return stem + suffix if len(data) <= NAME_BYTES else _cut(stem, data, suffix)


def _cut(stem: str, data: bytes, suffix: str) -> str:
    """The beginning of ``stem`` and a hash of ``data``, as a name that fits."""
    kept = stem.encode()[: NAME_BYTES - 40].decode(errors="ignore")
    return f"{kept}#{hashlib.sha256(data).hexdigest()[:16]}{suffix}"


def safe_label(label: str) -> str:
    """``label`` as a folder name: letters, digits, ``-`` and ``_``; ``_`` for all others."""
    label = unicodedata.normalize("NFC", label)
    return "".join(sign if sign.isalnum() or sign in "-_" else "_" for sign in label)


def label_folders(labels: Iterable[str]) -> dict[str, str]:
    """label → folder name.

    Raises:
        ConfigError: a label is empty or too long, or two would share a folder, also on
            file systems that ignore case.
    """
    folders: dict[str, str] = {}
    taken: dict[str, str] = {}
    for label in labels:
        folder = safe_label(label)
        if not folder or len(folder.encode()) > NAME_BYTES:
            raise ConfigError(
                f"expected a label of 1 to {NAME_BYTES} bytes, got {label!r}; rename it"
            )
        other = taken.setdefault(folder.casefold(), label)
        if other != label:
            raise ConfigError(
                f"the labels {other!r} and {label!r} would share the folder {folder!r}; "
                "rename one of them"
            )
        folders[label] = folder
    return folders
