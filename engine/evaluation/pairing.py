"""Which mask belongs to which file, by their paths. Refuses to open any of them."""

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from medclipsam.engine.archive.kinds import known_suffix
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.types import ItemRef

ENDINGS = ("_mask", "-mask", "_seg")
MARKS = ("~", "+")  # of ``outputs.mask_path``

Files = dict[str, Path]  # path below a folder → file


def walk_files(root: Path) -> Iterator[tuple[str, Path]]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and known_suffix(name):
                file = Path(folder, name)
                yield file.relative_to(root).as_posix(), file


def files_by_label(root: Path) -> dict[str, Files]:
    """The first folder level as labels; files beside it belong to the label ``""``."""
    labels: dict[str, Files] = defaultdict(dict)
    for path, file in walk_files(root):
        label, slash, rest = path.partition("/")
        labels[label if slash else ""][rest if slash else path] = file
    return dict(labels)


def match_files(
    label: str, predicted: Files, true: Files
) -> tuple[list[tuple[str, Path | None, Path]], int]:
    """((path, prediction or None, truth) of every truth, number of predictions left over).

    A truth belongs to the prediction, or image, of the same path but for suffixes, marks of
    ``outputs.mask_path`` and endings such as ``_mask``.

    Raises:
        ConfigError: two files claim one match.
    """
    by_key: dict[str, list[str]] = defaultdict(list)
    for path in predicted:
        by_key[_key(path, MARKS)].append(path)
    pairs: list[tuple[str, Path | None, Path]] = []
    claimed: dict[str, str] = {}
    for path, file in true.items():
        found = [path] if path in predicted else by_key.get(_key(_printable(path)), [])
        found = found or by_key.get(_key(_printable(path), ENDINGS), [])
        if len(found) > 1:
            raise ConfigError(
                f"two predictions of {label} fit the truth {_printable(path)}: "
                f"{_printable(found[0])} and {_printable(found[1])}; "
                "give the truth the exact name of its prediction"
            )
        if found and found[0] in claimed:
            raise ConfigError(
                f"two truth files fit the prediction {_printable(found[0])} of {label}: "
                f"{_printable(claimed[found[0]])} and {_printable(path)}; "
                "leave one mask for each image"
            )
        claimed.update(dict.fromkeys(found, path))
        pairs.append((path, predicted[found[0]] if found else None, file))
    return pairs, len(predicted) - len(claimed)


def _key(path: str, endings: tuple[str, ...] = ()) -> str:
    """``a/b.dcm+.png`` → ``a/b``: all suffixes, and ``endings`` among them, are cut off."""
    folder, _, name = path.rpartition("/")
    while True:
        ending = known_suffix(name) or next((e for e in endings if name.lower().endswith(e)), "")
        if ending in ("", name):
            return str(PurePosixPath(folder, name))
        name = name[: -len(ending)]


def _printable(path: str) -> str:
    return ItemRef(path).id
