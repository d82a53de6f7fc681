"""Containers of known members, and what is listed and fetched of them."""

import random
import zipfile
from pathlib import Path

import pytest
from archives.drawn import tar

from medclipsam.engine.archive import Entry, open_archive
from medclipsam.engine.errors import InputError

KINDS = ("x.tar", "x.tar.gz", "x.tgz", "x.zip")
RNG = random.Random(1)
CONTENT = {f"folder {k % 3}/{k:02}.png": RNG.randbytes(700 * k + 1) for k in range(12)}


def pack(path: Path, content: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in content.items():
                file.writestr(name, data)
    else:
        path.write_bytes(tar(content, "w" if path.suffix == ".tar" else "w:gz"))
    return path


def ids(spec, **options) -> list[str]:
    return [entry.ref.id for entry in open_archive(spec, **options)]


def fetched(spec, **options) -> dict[str, bytes]:
    """Every member's bytes, taken while the listing stands at it."""
    return {entry.ref.id: data_of(entry) for entry in open_archive(spec, **options)}


def data_of(entry: Entry) -> bytes:
    assert entry.fetch is not None, entry.error
    data = entry.fetch()
    assert entry.size == len(data)
    return data


def reason(entry: Entry) -> str:
    with pytest.raises(InputError) as caught:
        if entry.error is not None:
            raise entry.error
        data_of(entry)
    return caught.value.reason
