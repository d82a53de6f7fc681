"""Listing and reading: every file that looks like an image is accounted for."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage
from reading import read_image

from medclipsam.engine.archive import Limits, open_archive
from medclipsam.engine.errors import ConfigError, InputError
from medclipsam.engine.types import ItemRef


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (9, 7), np.uint8)
    PillowImage.fromarray(noise).save(path, "PNG")
    return path


def reason(root: Path, name: str, limits: Limits | None = None) -> str:
    with pytest.raises(InputError) as caught:
        read_image(root, ItemRef(name), limits or Limits())
    assert caught.value.stage == "read_image"
    return caught.value.reason


def paths(root: Path) -> list[str]:
    return [entry.ref.path for entry in open_archive(root)]


def test_order_is_by_name_folder_by_folder(tmp_path):
    for name in ("b.png", "a/z.PNG", "a/b.jpeg", "c/d/e.nii.gz", "c [1] (2)/x y.Tif", "z.ima"):
        picture(tmp_path / name)
    expected = ["a/b.jpeg", "a/z.PNG", "b.png", "c/d/e.nii.gz", "c [1] (2)/x y.Tif", "z.ima"]
    assert paths(tmp_path) == expected


def test_hidden_excluded_and_unknown_files_are_passed_over(tmp_path):
    for name in ("x.png", ".hidden.png", "._x.png", ".git/y.png", "out/masks/x.png", "n.txt", "m"):
        picture(tmp_path / name)
    listing = open_archive(tmp_path, avoid=tmp_path / "out")
    assert [entry.ref.path for entry in listing] == ["x.png"]
    assert listing.ignored == {".txt": 1, "": 1}
    assert [entry.ref.path for entry in listing] == ["x.png"]
    assert listing.ignored == {".txt": 1, "": 1}, "counted anew by each pass"


def test_dicom_files_without_suffix_are_found_by_magic(tmp_path):
    for name in ("IM0001", "1.2.840.113619.2", "DICOMDIR", "scan.001"):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")
    (tmp_path / "README").write_bytes(b"x" * 200)
    assert paths(tmp_path) == ["1.2.840.113619.2", "IM0001", "scan.001"]


def test_listing_is_lazy(tmp_path):
    for name in ("a/1.png", "b/1.png"):
        picture(tmp_path / name)
    items = iter(open_archive(tmp_path))
    assert next(items).ref.path == "a/1.png"
    picture(tmp_path / "b/2.png")
    assert [entry.ref.path for entry in items] == ["b/1.png", "b/2.png"]


def test_link_loops_end_and_linked_folders_are_not_followed(tmp_path):
    picture(tmp_path / "real/x.png")
    (tmp_path / "real/loop").symlink_to(tmp_path)
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    (tmp_path / "linked.png").symlink_to(tmp_path / "real/x.png")
    listing = open_archive(tmp_path)
    assert [entry.ref.path for entry in listing] == ["linked.png", "real/x.png", "self.png"]
    assert listing.ignored == {"linked folder": 1}
    assert reason(tmp_path, "self.png") == "not-a-file"
    assert read_image(tmp_path, ItemRef("linked.png")).frames.shape == (1, 9, 7, 3)


def test_root_may_be_one_file(tmp_path):
    path = picture(tmp_path / "scan")
    assert paths(path) == ["scan"]
    assert read_image(path, ItemRef("scan")).frames.shape == (1, 9, 7, 3)


def test_roots_without_images_are_configuration_errors(tmp_path):
    with pytest.raises(ConfigError, match="no archive"):
        open_archive(tmp_path / "missing")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"found no images .* \.txt × 1"):
        paths(tmp_path)
    with pytest.raises(ConfigError, match="itself"):
        open_archive(tmp_path, avoid=tmp_path)


def test_special_files_are_listed_and_quarantined_without_blocking(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo.png")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling.dcm").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.png").mkdir()
    monkeypatch.chdir(tmp_path)  # socket names are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.tif")
        assert paths(tmp_path) == ["dangling.dcm", "fifo.png", "socket.tif"]
        for name in ("dangling.dcm", "fifo.png", "socket.tif", "folder.png"):
            assert reason(tmp_path, name) == "not-a-file"


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"r\xf6ntgen\xff.png")
    picture(tmp_path / name)
    (entry,) = open_archive(tmp_path)
    ref = entry.ref
    assert ref.path == name
    assert ref.id == r"r\xf6ntgen\xff.png"
    assert read_image(tmp_path, ref).ref == ref


def test_vanished_empty_oversized_and_unknown_content(tmp_path):
    path = picture(tmp_path / "x.png")
    (entry,) = open_archive(tmp_path)
    ref = entry.ref
    assert reason(tmp_path, "x.png", Limits(max_bytes=20)) == "too-large"
    assert reason(tmp_path, "x.png", Limits(max_pixels=62)) == "too-large"
    read_image(tmp_path, ref, Limits(max_pixels=63))
    path.write_bytes(b"")
    assert reason(tmp_path, "x.png") == "empty"
    path.write_bytes(b"GIF89a" + bytes(50))
    assert reason(tmp_path, "x.png") == "unsupported"
    path.write_bytes(b"<html>" + bytes(50))
    assert reason(tmp_path, "x.png") == "unreadable"
    path.unlink()
    assert reason(tmp_path, "x.png") == "vanished"
    with pytest.raises(ConfigError):
        Limits(max_pixels=0)


def test_content_decides_not_the_suffix(tmp_path):
    picture(tmp_path / "really-png.dcm")
    assert read_image(tmp_path, ItemRef("really-png.dcm")).grid.kind == "raster"


def test_files_and_folders_that_may_not_be_opened(tmp_path, monkeypatch):
    picture(tmp_path / "x.png")
    picture(tmp_path / "locked/y.png")
    opened, scanned, allowed = os.open, os.scandir, os.access
    locked = str(tmp_path / "locked")

    def deny(path, *args, **kwargs):
        if Path(path).name == "x.png":
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **kwargs)

    def deny_folder(path):
        if str(path) == locked:
            raise PermissionError(13, "Permission denied")
        return scanned(path)

    # By hand, because root may open files of mode 000.
    monkeypatch.setattr(os, "open", deny)
    monkeypatch.setattr(os, "scandir", deny_folder)
    monkeypatch.setattr(os, "access", lambda p, m: str(p) != locked and allowed(p, m))
    assert paths(tmp_path) == ["locked", "x.png"]
    assert reason(tmp_path, "x.png") == "permission"
    assert reason(tmp_path, "locked") == "permission"


def test_a_file_that_shrinks_while_it_is_read(tmp_path, monkeypatch):
    path = picture(tmp_path / "x.png")
    looked = os.fstat

    def grown(handle):
        facts = looked(handle)
        return os.stat_result((*facts[:6], facts.st_size + 1, *facts[7:10]))

    monkeypatch.setattr("medclipsam.engine.archive.files.os.fstat", grown)
    assert path.exists()
    assert reason(tmp_path, "x.png") == "truncated"


def test_what_an_archive_says_of_itself(tmp_path, monkeypatch):
    picture(tmp_path / "scans/x.png")
    archive = open_archive(tmp_path / "scans")
    assert archive.identity == str(tmp_path / "scans") and archive.name == "scans"
    assert archive.countable and archive.count() == 1
    (tmp_path / "link").symlink_to(tmp_path / "scans")
    assert open_archive(str(tmp_path / "link")).identity == archive.identity
    monkeypatch.chdir(tmp_path / "scans")
    here = open_archive(".")
    assert here.identity == archive.identity and here.name == "scans"
    (entry,) = here
    assert entry.files == (tmp_path / "scans/x.png",) and entry.fetch is None
    one = open_archive("x.png")
    assert one.identity == str(tmp_path / "scans/x.png") and one.name == "x.png"


def test_one_file_of_another_kind(tmp_path):
    for name, data in {"x.rar": b"Rar!", "notes": b"text", "x.7z": b"7z"}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ConfigError, match="neither an image nor an archive"):
            open_archive(tmp_path / name)
    (tmp_path / "damaged.png").write_bytes(b"no image")
    assert paths(tmp_path / "damaged.png") == ["damaged.png"]
    (tmp_path / "empty").write_bytes(b"")
    assert paths(tmp_path / "empty") == ["empty"]


def test_results_are_not_written_into_the_archive(tmp_path):
    picture(tmp_path / "scans/x.png")
    for spec in (tmp_path / "scans", tmp_path / "scans/x.png", f"file://{tmp_path}/scans"):
        with pytest.raises(ConfigError, match="itself"):
            open_archive(spec, avoid=Path(str(spec).removeprefix("file://")))
    assert len(list(open_archive(tmp_path, avoid=tmp_path / "out"))) == 1
    with pytest.raises(ConfigError, match="no images"):
        list(open_archive(tmp_path, avoid=tmp_path / "scans"))


def test_a_folder_of_thousands_is_listed_one_folder_at_a_time(tmp_path, monkeypatch):
    for k in range(50):
        (tmp_path / f"{k:03}").mkdir()
        for n in range(200):
            (tmp_path / f"{k:03}/{n:03}.png").touch()
    opened, scan = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: opened.append(path) or scan(path))
    monkeypatch.setattr(os, "open", None)
    entries = iter(open_archive(tmp_path))
    assert next(entries).ref.id == "000/000.png" and len(opened) == 2
    assert sum(1 for _ in entries) == 9999 and len(opened) == 51


def test_the_archive_is_light_to_import():
    heavy = ("torch", "cv2", "gdcm", "pyarrow", "fsspec", "numba", "transformers")
    program = f"""
import sys
import medclipsam.engine.archive
print(*[name for name in {heavy} if sys.modules.get(name)])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert not done.stdout.split()
