"""Tar and zip: members are what the standard library has packed; nothing is extracted."""

import io
import os
import random
import re
import tarfile
import threading
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from bad_input import NOISE, deep, dicom, gzip, picture, tar, zeros, zlib
from hypothesis import given, settings
from hypothesis import strategies as st

from medclipsam.engine.archive import Entry, Limits, open_archive
from medclipsam.engine.archive.containers import members, stream
from medclipsam.engine.archive.containers.members import Names, harmless_name, safe_name
from medclipsam.engine.archive.shards import expand_braces
from medclipsam.engine.errors import ConfigError, InputError

KINDS = ("x.tar", "x.tar.gz", "x.tgz", "x.zip")
MEMORY = 6 << 20  # bytes for 10,000 names of one container
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


@pytest.mark.parametrize("name", KINDS)
def test_members_are_what_was_packed(tmp_path, name):
    path = pack(tmp_path / name, CONTENT)
    assert fetched(path) == {f"{name}/{member}": data for member, data in CONTENT.items()}
    archive = open_archive(path)
    assert [e.ref for e in archive] == [e.ref for e in archive], "ids are stable"
    streamed = name.endswith("gz")
    assert {e.streamed for e in archive} == {streamed}
    assert archive.countable is not streamed
    assert archive.count() == (None if streamed else len(CONTENT))
    assert archive.identity == str(path) and archive.name == name


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_every_dialect_of_tar(tmp_path, form, mode):
    long = "/".join(["deep" * 10] * (3 if form == tarfile.USTAR_FORMAT else 20)) + "/x.png"
    names = ["a.png", long, "röntgen ☢.png", os.fsdecode(b"latin\xff.png"), "z.png"]
    path = tmp_path / ("x.tar" if mode == "w" else "x.tgz")
    with tarfile.open(path, mode, format=form, errors="surrogateescape") as file:
        folder = tarfile.TarInfo("deep")
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
        for k, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 100 * k + 3, 1.5 * k
            file.addfile(info, io.BytesIO(bytes([k]) * info.size))
    found = {entry.ref.path: data_of(entry) for entry in open_archive(path)}
    expected = {f"{path.name}/{n}": bytes([k]) * (100 * k + 3) for k, n in enumerate(names)}
    assert found == expected


def test_webdataset_shards(tmp_path):
    """Samples of several files under one key: images are items, the others are counted."""
    for shard in range(3):
        content = {}
        for k in range(4):
            content |= {f"{shard}{k}.png": picture(NOISE), f"{shard}{k}.json": b"{}",
                        f"{shard}{k}.cls": b"1"}  # fmt: skip
        pack(tmp_path / f"shards-{shard:03}.tar", content)
    expected = [f"shards-{s:03}.tar/{s}{k}.png" for s in range(3) for k in range(4)]
    for pattern in ("shards-{000..002}.tar", "shards-*.tar", "shards-{000,001,002}.tar"):
        archive = open_archive(f"{tmp_path}/{pattern}")
        assert [entry.ref.id for entry in archive] == expected
        assert archive.ignored == {".json": 12, ".cls": 12}
        assert archive.identity == f"{tmp_path}/{pattern}" and archive.name == pattern
    assert ids(tmp_path) == expected
    assert ids(tmp_path / "shards-001.tar") == expected[4:8]
    (tmp_path / "shards-001.tar").unlink()
    entries = list(open_archive(f"{tmp_path}/shards-{{000..002}}.tar"))
    missing = [entry for entry in entries if entry.error is not None]
    assert [entry.ref.id for entry in missing] == ["shards-001.tar"]
    assert reason(missing[0]) == "vanished" and len(entries) == 9


def test_patterns_of_names(tmp_path):
    assert expand_braces("a{08..11}b") == ["a08b", "a09b", "a10b", "a11b"]
    assert expand_braces("{2..0}{x,y}") == ["2x", "2y", "1x", "1y", "0x", "0y"]
    assert expand_braces("{a}..{}") == ["{a}..{}"]
    with pytest.raises(ConfigError, match="more than"):
        expand_braces("{0..999999999999}.tar")
    for folder in ("a", "b"):
        pack(tmp_path / folder / "x.tar", {"1.png": b"1"})
    assert ids(f"{tmp_path}/{{a,b}}/x.tar") == ["a/x.tar/1.png", "b/x.tar/1.png"]
    assert ids(f"{tmp_path}/*/x.tar") == ["a/x.tar/1.png", "b/x.tar/1.png"]
    assert ids(f"{tmp_path}/[b]/*") == ["b/x.tar/1.png"]
    with pytest.raises(ConfigError, match="no archive"):
        open_archive(f"{tmp_path}/y-*.tar")
    (tmp_path / "[1].tar").write_bytes(tar({"1.png": b"1"}))
    assert ids(tmp_path / "[1].tar") == ["[1].tar/1.png"], "a file of that very name comes first"


def test_containers_in_folders_are_expanded_in_place(tmp_path):
    for name in ("a.png", "m/b.png", "z.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(picture(NOISE))
    for name in ("b.tar", "m/a.tar.gz", "m/c.zip"):
        inner = tar({"x.png": b"x"})
        pack(tmp_path / name, {"2.png": b"2", "1/1.png": b"1", "t.txt": b"", "in.tar": inner})
    archive = open_archive(tmp_path)
    assert [entry.ref.id for entry in archive] == [
        "a.png",
        *("b.tar/2.png", "b.tar/1/1.png"),
        *("m/a.tar.gz/2.png", "m/a.tar.gz/1/1.png"),
        "m/b.png",
        *("m/c.zip/2.png", "m/c.zip/1/1.png"),
        "z.png",
    ]
    assert archive.ignored == {".txt": 3, ".tar": 3}, "containers in containers stay closed"
    assert archive.count() is None, "one of them would be inflated to count it"
    assert ids(tmp_path, exclude=["*.gz", "m/c.zip/**"])[3:] == ["m/b.png", "z.png"]
    assert ids(tmp_path, include=["b.tar"]) == ["b.tar/2.png", "b.tar/1/1.png"]
    assert ids(tmp_path, include=["1/1.png", "**/1/*"]) == [
        f"{name}/1/1.png" for name in ("b.tar", "m/a.tar.gz", "m/c.zip")
    ]


@pytest.mark.parametrize("name", KINDS)
def test_hidden_and_suffixless_members(tmp_path, name):
    scan = dicom(deep())
    content = {"DICOM/IM0001": scan, "README": b"x" * 200, "._a.png": b"m", ".git/a.png": b"g",
               "DICOMDIR": scan, "short": b"x", "1.2.840.7": scan}  # fmt: skip
    path = pack(tmp_path / name, content)
    assert fetched(path) == {f"{name}/DICOM/IM0001": scan, f"{name}/1.2.840.7": scan}


@pytest.mark.parametrize("name", ["x.tar", "x.zip"])
def test_members_are_read_by_any_thread_in_any_order(tmp_path, name):
    rng = random.Random(3)
    content = {f"{k}.png": rng.randbytes(rng.randrange(1, 60_000)) for k in range(150)}
    entries = list(open_archive(pack(tmp_path / name, content))) * 3
    rng.shuffle(entries)
    with ThreadPoolExecutor(8) as threads:
        for entry, data in zip(entries, threads.map(data_of, entries), strict=True):
            assert data == content[entry.ref.path.partition("/")[2]]


@pytest.mark.parametrize("name", ["x.tar", "x.zip"])
def test_entries_hold_no_files_open(tmp_path, name):
    path = pack(tmp_path / name, CONTENT)
    before = len(os.listdir("/proc/self/fd"))
    entries = list(open_archive(path))
    assert len(os.listdir("/proc/self/fd")) == before
    path.rename(tmp_path / "gone")
    assert reason(entries[0]) == "vanished"
    path.write_bytes((tmp_path / "gone").read_bytes()[:5000])
    reasons = {e.ref.id: reason(e) for e in entries[-2:]}
    assert set(reasons.values()) <= {"truncated", "unreadable"}


def test_a_streamed_member_may_be_passed_over_or_fetched_elsewhere(tmp_path):
    path = pack(tmp_path / "x.tgz", CONTENT)
    kept = None
    for number, entry in enumerate(open_archive(path)):
        if number == 3:
            kept = entry
        if number % 2:
            result: list[bytes] = []
            thread = threading.Thread(target=lambda e=entry, r=result: r.append(data_of(e)))
            thread.start()
            thread.join()
            assert result == [CONTENT[entry.ref.path.removeprefix("x.tgz/")]]
    assert kept is not None and kept.fetch is not None
    with pytest.raises(RuntimeError, match="went on"):
        kept.fetch()


@pytest.mark.parametrize("name", KINDS)
def test_a_listing_of_thousands_is_lazy(tmp_path, name):
    content = dict.fromkeys((f"folder/{k:06}.png" for k in range(10_000)), b"x" * 600)
    path = pack(tmp_path / name, content)
    tracemalloc.start()
    try:
        count = sum(1 for _ in open_archive(path))
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 10_000
    # zipfile reads the directory at its end as a whole.
    assert held < MEMORY * (4 if name == "x.zip" else 1)


def test_the_first_member_is_there_before_the_second_is_looked_at(tmp_path):
    whole = tar({"1.png": b"1", "2.png": b"2"})
    path = tmp_path / "x.tar"
    path.write_bytes(whole)
    entries = iter(open_archive(path))
    assert next(entries).ref.id == "x.tar/1.png"
    damaged = bytearray(whole)
    damaged[1024:1536] = b"x" * 512
    with path.open("r+b") as file:
        file.write(damaged)
    late = list(entries)
    # Python reads ahead 8 KiB at most.
    assert [entry.ref.id for entry in late] in (["x.tar/2.png"], ["x.tar"])


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


@pytest.mark.parametrize("repeated", [1, 4])
def test_names_of_many_members_are_not_held(repeated):
    """Bytes that Python holds for each name; a dictionary of names takes more than 100."""
    count = 25_000
    with Names() as names:
        names.distinct("first")
        tracemalloc.start()
        for number in range(count * repeated):
            names.distinct(f"folder of the container/{number % count:012}.png")
        held, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert held < 2 * count and peak < 4 * count


def test_distinct_names():
    names = Names()
    given_names = ["a", "a#2", "a", "a", "b", "a#2"]
    assert [names.distinct(n) for n in given_names] == ["a", "a#2", "a#2#2", "a#3", "b", "a#2#3"]


def test_safe_and_harmless_names():
    assert safe_name("./a//b/./c.png") == "a/b/c.png"
    for name in ("", "/a", "../a", "a/..", "a\\..\\b", "C:a", "\\\\host\\a", "a\0b", "\\a"):
        assert safe_name(name) == ""
    assert harmless_name("../../a.png") == "%2e%2e/%2e%2e/a.png"


@given(st.text(), st.text())
def test_harmless_names_differ_and_stay_inside(one, other):
    for name in (one, other):
        parts = harmless_name(name).split("/")
        assert ".." not in parts and "" not in parts and "\0" not in harmless_name(name)
        assert not re.search(r"[\\:]", harmless_name(name))
    assert (harmless_name(one) == harmless_name(other)) == (one == other)
    assert members.is_hidden(".a") and members.is_hidden("a/.b/c") and not members.is_hidden("a.b")


def test_bombs_in_the_corpus_are_bombs():
    assert zlib.decompress(zeros(3, -zlib.MAX_WBITS), -zlib.MAX_WBITS) == bytes(3 << 20)
