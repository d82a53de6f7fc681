"""Containers that are cut off, damaged, garbage or bombs end with a reason, not a wrong member."""

import gzip
import random
import tarfile
import zlib

import pytest
from archives.drawn import tar, zeros
from archives.packed import CONTENT, KINDS, data_of, pack, reason
from hypothesis import given, settings
from hypothesis import strategies as st

from medclipsam.engine.archive import Limits, open_archive
from medclipsam.engine.archive.containers import stream
from medclipsam.engine.errors import InputError


def test_members_before_the_damage_and_the_next_container(tmp_path):
    whole = tar({f"{k}.png": b"x" * 5000 for k in range(6)})
    for suffix, data in (("tar", whole), ("tgz", gzip.compress(whole))):
        (tmp_path / f"b.{suffix}").write_bytes(data[: len(data) // 2])
    pack(tmp_path / "c.tar", {"1.png": b"1"})
    entries = list(open_archive(tmp_path))
    outcomes = {e.ref.id: e.error.reason if e.error else "" for e in entries}
    assert outcomes["b.tar/0.png"] == outcomes["b.tgz/0.png"] == outcomes["c.tar/1.png"] == ""
    assert outcomes["b.tar"] == outcomes["b.tgz"] == "truncated"
    assert "b.tar/5.png" not in outcomes and list(outcomes)[-1] == "c.tar/1.png"


@pytest.mark.parametrize("tenth", range(10))
@pytest.mark.parametrize("name", KINDS)
def test_containers_cut_off_anywhere(tmp_path, name, tenth):
    path = pack(tmp_path / name, CONTENT)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * tenth // 10])
    found, container = {}, ""
    for entry in open_archive(path):
        if entry.ref.id == name:
            container = reason(entry)
            continue
        try:
            found[entry.ref.path.removeprefix(f"{name}/")] = data_of(entry)
        except InputError as error:
            assert error.reason == "truncated"
    assert container in ("truncated", "empty", "unreadable"), "an early end is never silent"
    assert found.items() <= CONTENT.items()


@pytest.mark.parametrize("name", KINDS)
def test_a_flipped_byte_never_gives_another_picture_in_silence(tmp_path, name):
    """Zip and gzip have checksums; a tar has them for its headers only."""
    rng = random.Random(name)
    path = pack(tmp_path / name, CONTENT)
    data = path.read_bytes()
    for _ in range(60):
        bad = bytearray(data)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        for entry in open_archive(path):
            try:
                found = data_of(entry) if entry.fetch else b""
            except InputError:
                continue
            if name.endswith("zip") and entry.fetch:
                assert found in CONTENT.values()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=2000), st.sampled_from(["x.tar", "x.tgz", "x.zip"]), st.booleans())
def test_garbage_is_one_entry(tmp_path_factory, data, name, magic):
    path = tmp_path_factory.mktemp("garbage") / name
    head = {"x.tar": b"", "x.tgz": b"\x1f\x8b\x08\0\0\0\0\0\0\3", "x.zip": b"PK\3\4"}[name]
    path.write_bytes(head + data if magic else data + b"x")
    (entry,) = open_archive(path)
    assert entry.ref.id == name and entry.error is not None


def test_huge_garbage_takes_no_time(tmp_path):
    for name in ("x.tar", "x.zip", "x.tgz"):
        path = tmp_path / name
        with path.open("wb") as file:
            file.write(b"not an archive" * 100)
            file.truncate(1 << 40)  # a sparse file
        (entry,) = open_archive(path)
        assert reason(entry) == "unreadable"


def test_members_beyond_the_limits(tmp_path):
    for name in KINDS:
        path = pack(tmp_path / name, {"big.png": bytes(2000), "ok.png": bytes(1000)})
        big, ok = open_archive(path, limits=Limits(max_bytes=1500))
        assert reason(big) == "too-large" and big.size == 2000 and ok.error is None


def test_a_gzip_bomb_ends_the_container(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "FREE", 64 << 20)
    info = tarfile.TarInfo("big.png")
    info.size = 1 << 40
    path = tmp_path / "x.tgz"
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = packer.compress(info.tobuf()) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    path.write_bytes(head + block * 400)
    big, container = open_archive(path)
    assert reason(big) == reason(container) == "too-large"
    assert "500 times" in str(container.error)


def test_names_of_any_length_are_not_read_into_memory(tmp_path):
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
        info = tarfile.TarInfo("x")
        info.type, info.size = kind, 1 << 40
        (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
        (entry,) = open_archive(tmp_path / "x.tar")
        assert reason(entry) == "unreadable"


def test_sparse_members_and_sizes_in_records(tmp_path):
    path = tmp_path / "x.tar"
    sparse = tarfile.TarInfo("sparse.png")
    sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 512
    late = tarfile.TarInfo("late.png")
    late.pax_headers = {"size": "3"}
    bad = tarfile.TarInfo("bad.png")
    bad.pax_headers = {"size": "-3"}
    pax = tarfile.PAX_FORMAT
    path.write_bytes(
        sparse.tobuf() + bytes(512) + late.tobuf(pax) + b"abc" + bytes(509) + bad.tobuf(pax)
    )
    one, two, three = open_archive(path)
    assert reason(one) == "unsupported" and reason(three) == "unreadable"
    assert two.fetch is not None and two.fetch() == b"abc" and three.ref.id == "x.tar"


def test_bombs_in_the_corpus_are_bombs():
    assert zlib.decompress(zeros(3, -zlib.MAX_WBITS), -zlib.MAX_WBITS) == bytes(3 << 20)
