"""From one container to the items in it."""

from collections.abc import Iterator
from typing import IO

from medclipsam.engine.archive.containers.blob import Blob
from medclipsam.engine.archive.containers.members import (
    Member,
    Names,
    harmless_name,
    is_hidden,
    safe_name,
)
from medclipsam.engine.archive.containers.tars import tar_members
from medclipsam.engine.archive.containers.zips import zip_members
from medclipsam.engine.archive.entry import Entry
from medclipsam.engine.archive.limits import Limits, refuse
from medclipsam.engine.archive.readers.dicom.file import is_dicom
from medclipsam.engine.archive.sieve import Sieve
from medclipsam.engine.errors import InputError
from medclipsam.engine.types import ItemRef

GZIP_MAGIC, ZIP_MAGIC = b"\x1f\x8b", b"PK"


def list_members(blob: Blob, sieve: Sieve, limits: Limits) -> Iterator[Entry]:
    """The items of one container, in its order.

    Where it is damaged or ends early, an entry with the container's own path says so
    after the members before that place.
    """
    inside = sieve.inside(blob.path)
    try:
        with blob.open() as file, Names() as names:
            for member in _members(file, blob, limits):
                entry = _entry(member, blob, inside, names, limits)
                if entry is not None:
                    yield entry
    except InputError as exc:
        yield Entry(ItemRef(blob.path), error=exc)


def _members(file: IO[bytes], blob: Blob, limits: Limits) -> Iterator[Member]:
    """Members by what the file is, never by its suffix."""
    magic = file.read(len(GZIP_MAGIC))
    file.seek(0)
    if magic == ZIP_MAGIC:
        return zip_members(file, blob, limits)
    return tar_members(file, blob, zipped=magic == GZIP_MAGIC)


def _entry(member: Member, blob: Blob, sieve: Sieve, names: Names, limits: Limits) -> Entry | None:
    name = safe_name(member.name)
    if name and is_hidden(name):
        return None
    path = f"{blob.path}/{name or harmless_name(member.name)}"
    if not sieve.keep(path, lambda: not name or _is_dicom(member)):
        return None
    ref = ItemRef(names.distinct(path))
    error = _judge(member, name, limits)
    if error is not None:
        return Entry(ref, member.size, error=error)
    return Entry(ref, member.size, fetch=member.fetch, streamed=member.streamed)


def _is_dicom(member: Member) -> bool:
    return member.error is None and is_dicom(member.start())


def _judge(member: Member, name: str, limits: Limits) -> InputError | None:
    if not name:
        return refuse(
            "unsafe-name",
            "expected a name below the container's top, got one that leads elsewhere; "
            "pack it again with relative names",
        )
    if member.error is not None:
        return member.error
    try:
        limits.check_bytes(member.size)
    except InputError as exc:
        return exc
    return None
