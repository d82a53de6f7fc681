"""Tar files joined end to end: GNU tar with -i is the oracle of what they hold."""

import gzip
import io
import shutil
import subprocess
import tarfile

import pytest
from archives.drawn import NOISE, picture, tar

from medclipsam.engine.archive import open_archive
from medclipsam.engine.errors import InputError

ONE, TWO = {"a.png": picture(NOISE), "b.png": b"b" * 700}, {"c.png": b"c" * 512, "d/e.png": b"e"}
THREE = {"f.png": b"f" * 513}
ALL = {**ONE, **TWO, **THREE}
PADDINGS = (b"", bytes(512), bytes(10240), bytes(3 * 512 + 100))


def pax_globals(name: str, content: bytes) -> bytes:
    """A tar file whose global records give every member the path ``name``."""
    stream = io.BytesIO()
    with tarfile.open(
        fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"path": name}
    ) as file:
        info = tarfile.TarInfo("stored.png")
        info.size = len(content)
        file.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def listed(path) -> tuple[dict[str, bytes], str]:
    """Members by name, and the reason against the container, if there is one."""
    found, reason = {}, ""
    for entry in open_archive(path):
        if entry.ref.id == path.name:
            reason = entry.error.reason
        else:
            found[entry.ref.id.removeprefix(f"{path.name}/")] = entry.fetch()
    return found, reason


def stored(path, data: bytes, packed: str):
    """The file as it is, in one gzip stream, or as gzip members of odd sizes."""
    if packed == "one":
        data = gzip.compress(data)
    elif packed == "many":
        data = b"".join(gzip.compress(data[at : at + 3001]) for at in range(0, len(data), 3001))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("packed", ["", "one", "many"])
@pytest.mark.parametrize("padding", PADDINGS[:3], ids=len)
def test_joined_tars_are_read_whole(tmp_path, padding, packed):
    data = tar(ONE) + padding + tar(TWO) + padding + tar({}) + tar(THREE) + padding
    path = stored(tmp_path / f"x.{'tgz' if packed else 'tar'}", data, packed)
    assert listed(path) == (ALL, "")
    if shutil.which("tar"):
        flags = "-tizf" if packed else "-tif"
        done = subprocess.run(["tar", flags, str(path)], capture_output=True, text=True, check=True)
        assert done.stdout.split() == list(ALL)


@pytest.mark.parametrize("packed", ["", "one", "many"])
@pytest.mark.parametrize("end", [*PADDINGS, b"\n", b"signed" * 300, b"ustar" * 300], ids=len)
def test_what_follows_the_last_member_is_no_member_and_no_alarm(tmp_path, end, packed):
    path = tmp_path / f"x.{'tgz' if packed else 'tar'}"
    assert listed(stored(path, tar(ONE) + end, packed)) == (ONE, "")


@pytest.mark.parametrize("end", [bytes(700), b"\n", b"signed" * 300])
def test_what_follows_a_gzip_stream_is_no_alarm(tmp_path, end):
    path = tmp_path / "x.tgz"
    path.write_bytes(gzip.compress(tar(ONE)) + gzip.compress(tar(TWO)) + end)
    assert listed(path) == ({**ONE, **TWO}, "")


def test_a_joined_tar_that_lost_an_end_mark_but_for_one_block(tmp_path):
    path = tmp_path / "x.tar"
    first = tar(ONE).rstrip(b"\0")
    first += bytes(-len(first) % 512 + 512)
    path.write_bytes(first + tar(TWO))
    assert listed(path) == ({**ONE, **TWO}, "")


@pytest.mark.parametrize("packed", ["", "one"])
def test_records_of_one_tar_say_nothing_of_the_next(tmp_path, packed):
    data = pax_globals("new.png", b"n") + tar(TWO)
    path = stored(tmp_path / f"x.{'tgz' if packed else 'tar'}", data, packed)
    assert listed(path) == ({"new.png": b"n", **TWO}, "")


def broken(how: str) -> bytes:
    second = bytearray(tar(TWO))
    if how == "checksum":
        second[150] ^= 1
    elif how == "header":
        second[:512] = b"?" * 512
    elif how == "shifted":
        second[:0] = b"\n"
    elif how == "cut":
        del second[600:]
    elif how == "second header":
        second[1024 + 150] ^= 1
    return bytes(second)


@pytest.mark.parametrize("packed", ["", "one", "many"])
@pytest.mark.parametrize("how", ["checksum", "header", "shifted", "cut", "second header"])
def test_damage_in_the_second_is_said_after_the_first(tmp_path, how, packed):
    path = tmp_path / f"x.{'tgz' if packed else 'tar'}"
    stored(path, tar(ONE) + broken(how), packed)
    found = {}
    for entry in open_archive(path):
        try:
            if entry.error:
                raise entry.error
            found[entry.ref.id] = entry.fetch()
        except InputError as exc:
            last = entry.ref.id, exc.reason
    assert [*found][:2] == [f"{path.name}/{name}" for name in ONE]
    assert last == (path.name, "truncated" if how == "cut" else "unreadable")


def test_a_wrong_checksum_at_the_end_of_a_gzip_file_is_noticed(tmp_path):
    path = tmp_path / "x.tgz"
    data = bytearray(gzip.compress(tar(ONE)))
    data[-6] ^= 1
    path.write_bytes(data)
    assert listed(path) == (ONE, "unreadable")
