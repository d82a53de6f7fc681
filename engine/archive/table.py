"""A list of items: a table with the path of one in each row, or the image itself.

Rows are read one by one, so that a list may be longer than memory.
"""

import csv
import os
import posixpath
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from medclipsam.engine.archive.archive import Archive
from medclipsam.engine.archive.embedded import check_groups, holds_images, list_images
from medclipsam.engine.archive.entry import Entry
from medclipsam.engine.archive.kinds import is_container, known_suffix
from medclipsam.engine.archive.limits import Limits, refuse
from medclipsam.engine.archive.patterns import Patterns
from medclipsam.engine.archive.shards import list_file
from medclipsam.engine.archive.sieve import Sieve
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.tables import explained, text_rows
from medclipsam.engine.types import ItemRef

COLUMNS = ("item", "path", "image")
SEPARATORS = {".csv": ",;\t|", ".tsv": "\t,;|"}  # the usual one first
BATCH = 1024  # rows of a Parquet file at a time
T = TypeVar("T")


def open_table(file: Path, patterns: Patterns, limits: Limits) -> Archive:
    """The files that the rows of a CSV, TSV or Parquet table name, or the images in them.

    Paths are absolute or relative to the table's folder; ids are these paths as written,
    without a leading ``/``. A row that is listed twice is yielded twice. Cells of a CSV are
    separated by comma, semicolon, tab or bar, whichever makes one of its names ``item``,
    ``path`` or ``image``. A Parquet column may hold images, see ``embedded``.

    Raises:
        ConfigError: not such a table, or no column says which paths are meant.
    """
    folder = Path(os.path.abspath(file)).parent
    if file.suffix.lower() == ".parquet":
        with explained(file):
            column, kind = _parquet_column(file)
        if holds_images(kind):
            with explained(file):
                check_groups(file, column)
            walk = partial(_walk_images, file, column, folder, limits)
            return Archive(str(file.resolve()), file.name, walk, patterns, countable=False)
        _check_paths(file, column, kind)
        rows: Callable[[], Iterator[str | None]] = partial(_parquet_rows, file, column)
    else:
        with explained(file):
            separator, place = _read_header(file)
        rows = partial(_text_rows, file, separator, place)

    def walk_rows(sieve: Sieve) -> Iterator[Entry]:
        for number, text in enumerate(_guarded(file, rows()), start=1):
            if not text:
                raise ConfigError(f"{file}, row {number}: the path is empty")
            yield from _list_row(folder, text, sieve, limits)

    return Archive(str(file.resolve()), file.name, walk_rows, patterns)


def _walk_images(
    file: Path, column: str, folder: Path, limits: Limits, sieve: Sieve
) -> Iterator[Entry]:
    for found in _guarded(file, list_images(file, column, limits)):
        if isinstance(found, str):  # the path of a file instead of an image
            yield from _list_row(folder, found, sieve, limits)
        elif sieve.patterns.accept(found.ref.path):
            yield found


def _list_row(folder: Path, text: str, sieve: Sieve, limits: Limits) -> Iterator[Entry]:
    path = text.replace("\\", "/").removeprefix("./")
    file = folder / path
    if ".." in path.split("/"):  # an id must not lead out of the run folder
        path = posixpath.normpath(path)
        path = os.path.normpath(file) if path.startswith("../") else path
    path = path.lstrip("/")
    if not is_container(path) and not sieve.patterns.accept(path):
        return
    if "://" in text:
        error = refuse("unsupported", "expected the path of a file, got a URL")
        yield Entry(ItemRef(path), error=error)
    else:
        yield from list_file(file, path, sieve, limits)


def _choose(file: Path, names: list[str]) -> str:
    """The name of the column that holds the paths."""
    found = next((name for name in COLUMNS if name in names), None)
    if found is None and len(names) == 1 and not known_suffix(names[0]):
        found = names[0]
    if found is None:
        raise ConfigError(
            f"{file} has none of the columns {', '.join(COLUMNS)} in its first row, which holds "
            f"{', '.join(map(repr, names))}; name the one with the paths 'item'"
        )
    return found


def _read_header(file: Path) -> tuple[str, int]:
    """Separator of a text table, and the place of the path among its cells."""
    readings = []
    for separator in SEPARATORS[file.suffix.lower()]:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.reader(stream, delimiter=separator)
            names = [name.strip() for name in next(filter(None, rows), [])]
        if not names:
            raise ConfigError(f"cannot read the table {file}: it is empty")
        if set(COLUMNS) & set(names):
            return separator, names.index(_choose(file, names))
        readings.append((separator, names))
    separator, names = max(readings, key=lambda reading: len(reading[1]))
    return separator, names.index(_choose(file, names))


def _text_rows(file: Path, separator: str, place: int) -> Iterator[str]:
    rows = text_rows(file, separator)
    next(rows)
    return (row[place].strip() for row in rows)


def _parquet_column(file: Path) -> tuple[str, Any]:
    """Name and type of the column that holds paths or images."""
    from pyarrow import parquet

    schema = parquet.read_schema(file)
    if "image" in schema.names and holds_images(schema.field("image").type):
        return "image", schema.field("image").type
    name = _choose(file, list(schema.names))
    return name, schema.field(name).type


def _check_paths(file: Path, column: str, kind: Any) -> None:
    import pyarrow as pa

    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_view = getattr(pa.types, "is_string_view", lambda _: False)
    if not (pa.types.is_string(value) or pa.types.is_large_string(value) or is_view(value)):
        raise ConfigError(
            f"expected paths as text in column {column!r} of {file}, or images as "
            f"{{bytes, path}}, got {kind}; name the column with the paths 'item'"
        )


def _parquet_rows(file: Path, column: str) -> Iterator[str | None]:
    from pyarrow import parquet

    with parquet.ParquetFile(file) as table:
        for batch in table.iter_batches(batch_size=BATCH, columns=[column]):
            for value in batch.column(0).to_pylist():
                yield None if value is None else value.strip()


def _guarded(file: Path, rows: Iterator[T]) -> Iterator[T]:
    with explained(file):
        yield from rows
