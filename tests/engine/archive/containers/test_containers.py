"""Members of tar and zip are what was packed, listed lazily and in place, and never extracted."""

import io
import os
import random
import tarfile
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
from archives.drawn import NOISE, deep, dicom, picture, tar
from archives.packed import CONTENT, KINDS, data_of, fetched, ids, pack, reason

from medclipsam.engine.archive import open_archive
from medclipsam.engine.archive.shards import expand_braces
from medclipsam.engine.errors import ConfigError

MEMORY = 6 << 20  # bytes for 10,000 names of one container


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
