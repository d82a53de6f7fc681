"""Several containers or images named by one pattern: ``{000..099}``, ``{a,b}``, ``*``."""

import glob
import os
import re
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from medclipsam.engine.archive.archive import Archive
from medclipsam.engine.archive.containers.blob import LocalBlob
from medclipsam.engine.archive.containers.items import list_members
from medclipsam.engine.archive.entry import Entry
from medclipsam.engine.archive.files import has_magic
from medclipsam.engine.archive.kinds import is_container
from medclipsam.engine.archive.limits import Limits
from medclipsam.engine.archive.patterns import Patterns
from medclipsam.engine.archive.sieve import Sieve
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.types import ItemRef

BRACES = re.compile(r"\{(?:([^{}]*,[^{}]*)|(\d+)\.\.(\d+))\}")
MOST = 100_000  # names that one pattern may stand for


def is_pattern(text: str) -> bool:
    """Whether ``text`` holds a brace range or a shell glob."""
    return bool(BRACES.search(text)) or glob.has_magic(text)


def expand_braces(text: str) -> list[str]:
    """All names that ``text`` stands for, in the order of its ranges.

    Raises:
        ConfigError: more than 100,000.
    """
    names = list(islice(_expand(text), MOST + 1))
    if len(names) > MOST:
        raise ConfigError(f"{text} stands for more than {MOST} names; give a smaller range")
    return names


def _expand(text: str) -> Iterator[str]:
    braces = BRACES.search(text)
    if braces is None:
        yield text
        return
    for choice in _choices(*braces.groups()):
        for rest in _expand(text[braces.end() :]):
            yield text[: braces.start()] + choice + rest


def _choices(names: str | None, first: str, last: str) -> Iterator[str]:
    if names is not None:
        yield from names.split(",")
        return
    low, high = int(first), int(last)
    width = len(first) if first.startswith("0") else 1
    for number in range(low, high + 1) if low <= high else range(low, high - 1, -1):
        yield f"{number:0{width}}"


def open_shards(pattern: str, patterns: Patterns, limits: Limits) -> Archive:
    """The members of all containers that ``pattern`` names, which may be a single path.

    Ids begin below the last folder that the pattern names without a wildcard.

    Raises:
        ConfigError: nothing of that name is there.
    """
    root = os.path.abspath(_fixed_folder(pattern))
    files = _matches(os.path.abspath(pattern))
    if not any(map(os.path.lexists, files)):
        raise ConfigError(f"there is no archive at {pattern}; check the path")

    def walk(sieve: Sieve) -> Iterator[Entry]:
        for file in files:
            path = os.path.relpath(file, root).replace(os.sep, "/")
            if is_container(file) or sieve.keep(path, partial(has_magic, Path(file))):
                yield from list_file(Path(file), path, sieve, limits)

    name = os.path.basename(pattern)
    identity = os.path.join(os.path.realpath(root), os.path.relpath(os.path.abspath(pattern), root))
    zipped = any(file.lower().endswith((".tar.gz", ".tgz")) for file in files)
    return Archive(identity, name, walk, patterns, countable=not zipped)


def list_file(file: Path, path: str, sieve: Sieve, limits: Limits) -> Iterator[Entry]:
    """The members of a container, or the file itself as one item."""
    if not is_container(file.name):
        yield Entry(ItemRef(path), files=(file,))
    elif not sieve.patterns.leave_out(path):
        yield from list_members(LocalBlob(path, file), sieve, limits)


def _matches(pattern: str) -> list[str]:
    """Names with braces in their order, and of each glob what it matches, by name."""
    if os.path.lexists(pattern):
        return [pattern]
    found: list[str] = []
    for name in expand_braces(pattern):
        found += sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]
    return found


def _fixed_folder(pattern: str) -> str:
    if os.path.lexists(pattern):
        return os.path.dirname(pattern)
    start = re.match(r"[^*?\[{]*", pattern)
    return os.path.dirname(start[0] if start else "")
