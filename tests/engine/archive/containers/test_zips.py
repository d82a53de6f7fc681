"""The directory of a zip file: the standard library's zipfile is the oracle."""

import io
import random
import tracemalloc
import zipfile
from contextlib import suppress

import pytest

from medclipsam.engine.archive import open_archive
from medclipsam.engine.archive.containers.zipdirectory import read_directory
from medclipsam.engine.errors import InputError


def make(names, comment=b"", wide=False, before=b"", extra=b"") -> bytes:
    stream = io.BytesIO()
    stream.write(before)
    with zipfile.ZipFile(stream, "a" if before else "w") as file:
        file.comment = comment
        for k, name in enumerate(names):
            info = zipfile.ZipInfo("x")
            info.filename, info.comment, info.extra = name, b"c" * (k % 5), extra
            info.compress_type = zipfile.ZIP_DEFLATED if k % 2 else zipfile.ZIP_STORED
            info.external_attr = (0o100644 + k % 8) << 16
            with file.open(info, "w", force_zip64=wide) as member:
                member.write(bytes([k % 251]) * (k % 700))
    return stream.getvalue()


def facts(data: bytes) -> list[tuple]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return [
            (i.orig_filename, i.flag_bits, i.compress_type, i.external_attr >> 16, i.CRC,
             i.compress_size, i.file_size, i.header_offset)
            for i in file.infolist()
        ]  # fmt: skip


def ours(data: bytes) -> list[tuple]:
    return [
        (r.name, r.flags, r.method, r.mode, r.crc, r.packed, r.size, r.offset)
        for r in read_directory(io.BytesIO(data))
    ]


NAMES = ["a.png", "d/", "d/é.png", "back\\slash.png", "☢" * 300, "x" * 60_000, ""]
FILES = {
    "plain": make(NAMES[:-1]),
    "none": make([]),
    "comment": make(NAMES[:3], comment=b"said of the file" * 99),
    "wide": make(NAMES[:4], wide=True),
    "put before": make(NAMES[:4], before=b"#!/bin/sh\n" * 70),
    "extra": make(NAMES[:4], extra=b"\xfe\xca\4\0abcd" * 8000),
    "many": make([f"{k:05}.png" for k in range(3000)]),
}


@pytest.mark.parametrize("name", FILES)
def test_records_are_those_of_zipfile(name):
    assert ours(FILES[name]) == facts(FILES[name])


def test_more_members_than_a_plain_end_record_can_count():
    data = make([f"{k}" for k in range(65_600)])
    assert ours(data) == facts(data)


def test_sizes_beyond_four_gigabytes_are_read_from_the_extra_field():
    """Written by zipfile's own directory, of a member that is not there."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for k in range(3):
            info = zipfile.ZipInfo(f"{k}.png")
            info.CRC, info.file_size, info.compress_size = k, (6 << 32) + k, (5 << 32) + k
            info.header_offset = (k << 33) + 7
            file.filelist.append(info)
            file.NameToInfo[info.filename] = info
        file._didModify = True
    data = stream.getvalue()
    assert ours(data) == facts(data) and ours(data)[2][5:] == (
        (5 << 32) + 2,
        (6 << 32) + 2,
        17179869191,
    )


@pytest.mark.parametrize("name", ["plain", "wide", "many"])
def test_damage_is_said_after_the_records_before_it(name):
    whole, rng = FILES[name], random.Random(name)
    start = whole.index(b"PK\1\2")
    for _ in range(80):
        data = bytearray(whole)
        data[rng.randrange(start, len(data))] ^= 1 << rng.randrange(8)
        try:
            found = ours(bytes(data))
        except InputError as exc:
            assert exc.reason in ("unreadable", "truncated")
        else:
            with suppress(zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError):
                assert found == facts(bytes(data))
    for cut in (start + 10, len(whole) - 22, len(whole) - 1):
        with pytest.raises(InputError) as caught:
            ours(whole[:cut])
        assert caught.value.reason == "truncated"


def test_of_many_members_few_are_held(tmp_path):
    """Bytes that Python holds for each member while it lists; zipfile itself takes some 600."""
    count = 20_000
    (tmp_path / "x.zip").write_bytes(make([f"folder/{k:06}.png" for k in range(count)]))
    archive = open_archive(tmp_path / "x.zip")
    next(iter(archive))
    tracemalloc.start()
    assert sum(1 for _ in archive) == count
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (4 << 20) < 300 * count


def test_a_member_without_a_name_is_one_item(tmp_path):
    (tmp_path / "x.zip").write_bytes(make([*NAMES[:1], "", "b.png"]))
    found = {e.ref.id: e.error.reason if e.error else "" for e in open_archive(tmp_path / "x.zip")}
    assert found == {"x.zip/a.png": "", "x.zip/%2f": "unsafe-name", "x.zip/b.png": ""}
