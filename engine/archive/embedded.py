"""Images that lie in a column of a Parquet file, as Hugging Face's data sets keep them.

A cell is a struct of ``bytes``, the encoded image, and ``path``, its file's name; or the
bytes alone. What is held at a time is a page of the file, which pyarrow makes of a whole row
group: Hugging Face writes a hundred rows into one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medclipsam.engine.archive.containers.members import Names, harmless_name, safe_name
from medclipsam.engine.archive.entry import Entry
from medclipsam.engine.archive.limits import Limits, refuse
from medclipsam.engine.errors import ConfigError, InputError
from medclipsam.engine.types import ItemRef

ROWS = 4  # taken from a page at a time
GROUP = 2 << 30  # bytes of images in one row group at most
BUFFER = 1 << 20  # bytes of the file at a time, beside the page


def holds_images(kind: Any) -> bool:
    """Whether a column of the pyarrow type ``kind`` holds encoded images."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_binary(kind.field(place).type)
    return _is_binary(kind)


def _is_binary(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def check_groups(file: Path, column: str) -> None:
    """Refuse a file of which not even one row group may be held.

    Raises:
        ConfigError: says how to write it.
    """
    from pyarrow import parquet

    with parquet.ParquetFile(file) as table:
        for group in range(table.num_row_groups):
            chunks = map(table.metadata.row_group(group).column, range(table.metadata.num_columns))
            size = sum(
                chunk.total_uncompressed_size
                for chunk in chunks
                if chunk.path_in_schema.partition(".")[0] == column
            )
            if size > GROUP:
                raise ConfigError(
                    f"expected at most {GROUP} bytes of images in a row group of {file}, because "
                    f"one is held in memory, got {size}; write it with a smaller row_group_size"
                )


def list_images(file: Path, column: str, limits: Limits) -> Iterator[Entry | str]:
    """The image of each row; where it has a path but no bytes, that path.

    Ids are the paths, made safe and distinct as those of a container's members are, or
    ``row-1``, ``row-2``, … where there is none.
    """
    from pyarrow import parquet

    options = {"pre_buffer": False, "buffer_size": BUFFER}
    with Names() as names, parquet.ParquetFile(file, **options) as table:
        number = 0
        for batch in table.iter_batches(batch_size=ROWS, columns=[column]):
            for cell in batch.column(0):
                number += 1
                data, path = _take_apart(cell.as_py())
                if data is None and path:
                    yield path
                    continue
                name = safe_name(path.lstrip("/")) or harmless_name(path) if path else ""
                name = name or f"row-{number}"
                yield _entry(ItemRef(names.distinct(name)), data or b"", limits)


def _take_apart(cell: Any) -> tuple[bytes | None, str]:
    if isinstance(cell, dict):
        path = cell.get("path")
        return cell.get("bytes"), path if isinstance(path, str) else ""
    return cell, ""


def _entry(ref: ItemRef, data: bytes, limits: Limits) -> Entry:
    error: InputError | None = None
    try:
        limits.check_bytes(len(data))
        if not data:
            raise refuse("empty", "expected an image in the row, got 0 bytes")
    except InputError as exc:
        error = exc
    if error is not None:
        return Entry(ref, len(data), error=error)
    return Entry(ref, len(data), fetch=lambda: data, streamed=True)
