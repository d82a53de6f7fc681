"""Tables of texts: CSV, TSV and Parquet. Text tables begin with a row of names, and quoted
cells may hold line breaks."""

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medclipsam.engine.errors import ConfigError

Table = dict[str, list[Any]]
OnBadRow = Callable[[int, str], None]


def read_table(
    path: Path,
    on_bad_row: OnBadRow | None = None,
    columns: Sequence[str] = (),
    advice: str = "rename it",
) -> Table:
    """Column → cells, None where one is empty; Parquet cells keep their own types.

    Args:
        path: ``.csv``, ``.tsv`` or ``.parquet``.
        on_bad_row: see ``text_rows``.
        columns: names that the table must have.
        advice: what is said where one is missing.

    Raises:
        ConfigError: it cannot be read, or is no such table.
    """
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv", ".parquet"):
        raise ConfigError(f"{path} is neither .csv, .tsv nor .parquet")
    with explained(path):
        if suffix == ".parquet":
            from pyarrow import parquet

            table: Table = parquet.read_table(path).to_pydict()
        else:
            names, *rows = text_rows(path, "\t" if suffix == ".tsv" else ",", on_bad_row)
            cells = zip(*rows, strict=True) if rows else [()] * len(names)
            table = {n: [c or None for c in column] for n, column in zip(names, cells, strict=True)}
    if missing := [name for name in columns if name not in table]:
        raise ConfigError(
            f"{path} has no column {missing[0]!r} (its columns: {', '.join(map(str, table))}); "
            f"{advice}"
        )
    return table


def text_rows(
    path: Path, separator: str, on_bad_row: OnBadRow | None = None
) -> Iterator[list[str]]:
    """The names, and then row after row, of a text table that may be longer than memory.

    Args:
        on_bad_row: told of each row with too few or too many cells (row from 1, what is
            wrong), which is then left out. Without it such a row is an error.

    Raises:
        ConfigError: the names are missing or not distinct, or a row is damaged.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = _complete_rows(csv.reader(file, delimiter=separator, strict=True), path)
        names = [name.strip() for name in next(rows, [])]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"the first row of {path} must name its columns, got {names}")
        yield names
        for number, row in enumerate(filter(None, rows), start=1):
            if len(row) == len(names):
                yield row
                continue
            what = f"expected {len(names)} cells, got {len(row)}"
            if on_bad_row is None:
                raise ConfigError(
                    f"cannot read the table {path}: row {number}: {what}; put cells that hold "
                    f"{separator!r} into quotes"
                )
            on_bad_row(number, what)


def _complete_rows(rows: Any, path: Path) -> Iterator[list[str]]:
    """The rows that a strict ``csv.reader`` finds, for which an open quote is an error; it
    names the line in which a row goes wrong."""
    begin = rows.line_num + 1
    try:
        for row in rows:
            yield row
            begin = rows.line_num + 1
    except csv.Error as exc:
        raise ConfigError(
            f"cannot read the table {path}: {exc}, in the row that begins in line {begin}; "
            "look for a quote that is not closed or not doubled"
        ) from exc


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what is raised on a damaged table into a ConfigError."""
    import pyarrow as pa

    try:
        yield
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException) as exc:
        raise ConfigError(f"cannot read the table {path}: {exc}") from exc
