"""Which kind of archive a path, a pattern or a URL stands for."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from medclipsam.engine.archive.archive import Archive
from medclipsam.engine.archive.entry import Entry
from medclipsam.engine.archive.files import read_start
from medclipsam.engine.archive.kinds import CONTAINERS, LISTS, is_container, is_list, known_suffix
from medclipsam.engine.archive.limits import DEFAULT_LIMITS, Limits
from medclipsam.engine.archive.listing import Folder
from medclipsam.engine.archive.patterns import Patterns
from medclipsam.engine.archive.readers.reader import is_image
from medclipsam.engine.archive.remote import open_remote
from medclipsam.engine.archive.shards import is_pattern, open_shards
from medclipsam.engine.archive.sieve import Sieve
from medclipsam.engine.archive.table import open_table
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.types import ItemRef

HEAD = 540  # bytes of a file that tell what it is, NIfTI-2 needing the most


def open_archive(
    spec: str | Path,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    series: bool = False,
    avoid: Path | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Archive:
    """Whatever holds images, as one list of items.

    Args:
        spec: a folder; an image; a container (.tar, .tar.gz, .tgz, .zip); several of these
            as ``shards-{000..099}.tar`` or ``shards-*.tar``; a list of paths (.csv, .tsv,
            .parquet); or the URL of a folder, image or container, such as ``s3://…``.
        include: globs, of which an item's path below the root must match one.
        exclude: globs, of which it must match none; see ``patterns``.
        series: of a folder, take all DICOM files of one series in one folder as one item.
        avoid: a folder to pass over, because results are written there.
        limits: caps on the members of containers and on remote files.

    Raises:
        ConfigError: nothing is there, it is of no known kind, or results would be
            written into the archive. That it holds no images is found by iterating.
    """
    text = _local(os.fspath(spec))
    archive = _open(text, Patterns.of(include, exclude), series, avoid, limits)
    archive.selection = {"include": [*include], "exclude": [*exclude], "series": series}
    return archive


def _open(
    text: str, patterns: Patterns, series: bool, avoid: Path | None, limits: Limits
) -> Archive:
    if series and not os.path.isdir(text):
        raise ConfigError(f"series are put together from the files of a folder, not from {text}")
    if "://" in text:
        return open_remote(text, patterns, limits)
    path = Path(text)
    if avoid is not None and os.path.realpath(avoid) == os.path.realpath(path):
        raise ConfigError(f"the output folder is the archive {path} itself; choose another one")
    if path.is_dir():
        walk = Folder(path, avoid, series, limits).walk
        return Archive(str(path.resolve()), path.resolve().name, walk, patterns)
    if is_container(text) or (is_pattern(text) and not os.path.lexists(path)):
        return open_shards(text, patterns, limits)
    if not os.path.lexists(path):
        raise ConfigError(f"there is no archive at {path}; check the path")
    return open_table(path, patterns, limits) if is_list(text) else _open_file(path, patterns)


def _open_file(path: Path, patterns: Patterns) -> Archive:
    """One image as an archive, whatever its suffix."""
    start = read_start(path, HEAD)
    if start and not known_suffix(path.name) and not is_image(start):
        raise ConfigError(
            f"{path} is neither an image nor an archive; expected a folder, an image, "
            f"a container ({', '.join(CONTAINERS)}) or a list of paths ({', '.join(LISTS)})"
        )

    def walk(sieve: Sieve) -> Iterator[Entry]:
        if sieve.patterns.accept(path.name):
            yield Entry(ItemRef(path.name), files=(path,))

    return Archive(str(path.resolve()), path.name, walk, patterns)


def _local(spec: str) -> str:
    """``file:///a/b`` as the path that it is."""
    parts = urlsplit(spec) if spec.startswith(("file://", "local://")) else None
    return unquote(parts.path) if parts and parts.netloc in ("", "localhost") else spec
