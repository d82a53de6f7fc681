"""Listing and reading: every file that looks like an image is accounted for."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from medclipsam.engine.archive import Limits, Listing, list_items, read_image
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


def paths(root: Path, exclude: Path | None = None) -> list[str]:
    return [ref.path for ref in list_items(root, exclude)]


def test_order_is_by_name_folder_by_folder(tmp_path):
    for name in ("b.png", "a/z.PNG", "a/b.jpeg", "c/d/e.nii.gz", "c [1] (2)/x y.Tif", "z.ima"):
        picture(tmp_path / name)
    expected = ["a/b.jpeg", "a/z.PNG", "b.png", "c/d/e.nii.gz", "c [1] (2)/x y.Tif", "z.ima"]
    assert paths(tmp_path) == expected


def test_hidden_excluded_and_unknown_files_are_passed_over(tmp_path):
    for name in ("x.png", ".hidden.png", "._x.png", ".git/y.png", "out/masks/x.png", "n.txt", "m"):
        picture(tmp_path / name)
    listing = Listing(tmp_path, exclude=tmp_path / "out")
    assert [ref.path for ref in listing] == ["x.png"]
    assert listing.ignored == {".txt": 1, "": 1}
    assert [ref.path for ref in listing] == ["x.png"]
    assert listing.ignored == {".txt": 1, "": 1}, "counted anew by each pass"


def test_dicom_files_without_suffix_are_found_by_magic(tmp_path):
    for name in ("IM0001", "1.2.840.113619.2", "DICOMDIR", "scan.001"):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")
    (tmp_path / "README").write_bytes(b"x" * 200)
    assert paths(tmp_path) == ["1.2.840.113619.2", "IM0001", "scan.001"]


def test_listing_is_lazy(tmp_path):
    for name in ("a/1.png", "b/1.png"):
        picture(tmp_path / name)
    items = list_items(tmp_path)
    assert next(items).path == "a/1.png"
    picture(tmp_path / "b/2.png")
    assert [ref.path for ref in items] == ["b/1.png", "b/2.png"]


def test_link_loops_end_and_linked_folders_are_not_followed(tmp_path):
    picture(tmp_path / "real/x.png")
    (tmp_path / "real/loop").symlink_to(tmp_path)
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    (tmp_path / "linked.png").symlink_to(tmp_path / "real/x.png")
    listing = Listing(tmp_path)
    assert [ref.path for ref in listing] == ["linked.png", "real/x.png", "self.png"]
    assert listing.ignored == {"linked folder": 1}
    assert reason(tmp_path, "self.png") == "not-a-file"
    assert read_image(tmp_path, ItemRef("linked.png")).frames.shape == (1, 9, 7, 3)


def test_root_may_be_one_file(tmp_path):
    path = picture(tmp_path / "scan")
    assert paths(path) == ["scan"]
    assert read_image(path, ItemRef("scan")).frames.shape == (1, 9, 7, 3)


def test_roots_without_images_are_configuration_errors(tmp_path):
    with pytest.raises(ConfigError, match="no archive"):
        list_items(tmp_path / "missing")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"found no images .* \.txt × 1"):
        paths(tmp_path)
    with pytest.raises(ConfigError, match="itself"):
        Listing(tmp_path, exclude=tmp_path)


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
    (ref,) = list_items(tmp_path)
    assert ref.path == name
    assert ref.id == r"r\xf6ntgen\xff.png"
    assert read_image(tmp_path, ref).ref == ref


def test_vanished_empty_oversized_and_unknown_content(tmp_path):
    path = picture(tmp_path / "x.png")
    (ref,) = list_items(tmp_path)
    assert reason(tmp_path, "x.png", Limits(max_bytes=20)) == "too-large"
    assert reason(tmp_path, "x.png", Limits(max_pixels=62)) == "too-large"
    read_image(tmp_path, ref, Limits(max_pixels=63))
    path.write_bytes(b"")
    assert reason(tmp_path, "x.png") == "empty"
    path.write_bytes(b"GIF89a" + bytes(50))
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

    monkeypatch.setattr("medclipsam.engine.archive.reader.os.fstat", grown)
    assert path.exists()
    assert reason(tmp_path, "x.png") == "truncated"
