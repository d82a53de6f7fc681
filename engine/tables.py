"""Tables of texts: CSV, TSV and Parquet, whole, every cell a text or None."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from medclipsam.engine.errors import ConfigError

Table = dict[str, list[Any]]
OnBadRow = Callable[[int, str], None]


def read_table(path: Path, on_bad_row: OnBadRow | None = None) -> Table:
    """Column → cells; Parquet cells keep their own types.

    Args:
        path: ``.csv``, ``.tsv`` or ``.parquet``; text tables begin with a row of names, and
            quoted cells may hold line breaks.
        on_bad_row: told of each row with too few or too many cells (row from 1, what is
            wrong), which is then left out. Without it such a row is an error.

    Raises:
        ConfigError: it cannot be read, or is no such table.
    """
    import pyarrow as pa

    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            from pyarrow import parquet

            return parquet.read_table(path).to_pydict()
        if suffix in (".csv", ".tsv"):
            return _read_text(path, "\t" if suffix == ".tsv" else ",", on_bad_row)
    except (OSError, pa.ArrowInvalid, UnicodeDecodeError) as exc:
        raise ConfigError(f"cannot read the table {path}: {exc}") from exc
    raise ConfigError(f"{path} is neither .csv, .tsv nor .parquet")


def _read_text(path: Path, separator: str, on_bad_row: OnBadRow | None) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter=separator, strict=True)  # an open quote is an error
        names = [name.strip() for name in next(complete_rows(rows, path), [])]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"the first row of {path} must name its columns, got {names}")
        columns: Table = {name: [] for name in names}
        for number, row in enumerate(filter(None, complete_rows(rows, path)), start=1):
            if len(row) != len(names):
                what = f"expected {len(names)} cells, got {len(row)}"
                if on_bad_row is None:
                    raise ConfigError(f"cannot read the table {path}: row {number}: {what}")
                on_bad_row(number, what)
                continue
            for name, cell in zip(names, row, strict=True):
                columns[name].append(cell or None)
    return columns


def complete_rows(rows: Any, path: Path) -> Iterator[list[str]]:
    """The rows that a ``csv.reader`` finds; the error names the line in which a row goes wrong."""
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
