"""A list of items: a table with the path of one in each row.

Rows are read in batches, so that a list may be longer than memory.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medclipsam.engine.archive.archive import Archive
from medclipsam.engine.archive.entry import Entry
from medclipsam.engine.archive.kinds import is_container, known_suffix
from medclipsam.engine.archive.limits import Limits, refuse
from medclipsam.engine.archive.patterns import Patterns
from medclipsam.engine.archive.shards import list_file
from medclipsam.engine.archive.sieve import Sieve
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.types import ItemRef

COLUMNS = ("item", "path", "image")
BATCH = 1024  # rows of a Parquet file at a time
BLOCK = 1 << 18  # bytes of a text file at a time; pyarrow holds some twenty of them


def open_table(file: Path, patterns: Patterns, limits: Limits) -> Archive:
    """The files that the rows of a CSV, TSV or Parquet table name.

    Paths are absolute or relative to the table's folder; ids are these paths as written,
    without a leading ``/``. A row that is listed twice is yielded twice.

    Raises:
        ConfigError: not such a table, or no column says which paths are meant.
    """
    folder = Path(os.path.abspath(file)).parent
    _column(file)

    def walk(sieve: Sieve) -> Iterator[Entry]:
        for number, text in enumerate(_rows(file), start=1):
            if not text:
                raise ConfigError(f"{file}, row {number}: the path is empty")
            yield from _list_row(folder, text, sieve, limits)

    return Archive(str(file.resolve()), file.name, walk, patterns)


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


def _column(file: Path) -> str:
    """The name of the column that holds the paths."""
    names = _names(file)
    found = next((name for name in COLUMNS if name in names), None)
    if found is None and len(names) == 1 and not known_suffix(names[0]):
        found = names[0]
    if found is None:
        raise ConfigError(
            f"{file} has none of the columns {', '.join(COLUMNS)} in its first row, which holds "
            f"{', '.join(map(repr, names))}; name the one with the paths 'item'"
        )
    return found


def _names(file: Path) -> list[str]:
    with _explained(file):
        if _is_parquet(file):
            from pyarrow import parquet

            return list(parquet.read_schema(file).names)
        with _open_csv(file) as reader:
            return list(reader.schema.names)


def _rows(file: Path) -> Iterator[str | None]:
    column = _column(file)
    with _explained(file):
        for batch in _batches(file, column):
            for value in batch.column(0).to_pylist():
                yield None if value is None else str(value).strip()


def _batches(file: Path, column: str) -> Iterator[Any]:
    if not _is_parquet(file):
        with _open_csv(file, column) as reader:
            yield from reader
        return
    from pyarrow import parquet

    with parquet.ParquetFile(file) as table:
        yield from table.iter_batches(batch_size=BATCH, columns=[column])


def _open_csv(file: Path, column: str | None = None) -> Any:
    import pyarrow as pa
    from pyarrow import csv

    tabs = file.suffix.lower() == ".tsv"
    chosen = {"include_columns": [column], "column_types": {column: pa.string()}} if column else {}
    return csv.open_csv(
        file,
        read_options=csv.ReadOptions(block_size=BLOCK),
        parse_options=csv.ParseOptions(delimiter="\t" if tabs else ","),
        convert_options=csv.ConvertOptions(strings_can_be_null=True, null_values=[""], **chosen),
    )


def _is_parquet(file: Path) -> bool:
    return file.suffix.lower() == ".parquet"


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    """Turn what pyarrow raises on a damaged table into a ConfigError."""
    import pyarrow as pa

    try:
        yield
    except (OSError, UnicodeDecodeError, pa.ArrowException) as exc:
        raise ConfigError(f"cannot read the list {file}: {exc}") from exc
