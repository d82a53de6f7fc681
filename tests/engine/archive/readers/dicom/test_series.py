"""Slices that belong together are one item in the order of their places, the others stay alone."""

import os

import numpy as np
import pydicom
import pytest
from archives.drawn import NOISE, deep, dicom, picture, tar
from dicoms.slices import (
    AXIAL,
    CORONAL,
    LIMITS,
    OBLIQUE,
    SPACING,
    UID,
    headers,
    normal_of,
    write_slices,
)
from pydicom import uid

from medclipsam.engine.archive import Decoders, Limits, decode, open_archive
from medclipsam.engine.errors import ConfigError, InputError

# pytest overrides the filter that the engine installs against pydicom's remarks.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*"),
    pytest.mark.filterwarnings("ignore:The DICOM readers are highly experimental"),
]


def ids(folder, **options) -> list[str]:
    return [entry.ref.id for entry in open_archive(folder, series=True, **options)]


@pytest.mark.parametrize("turn", [AXIAL, CORONAL, OBLIQUE])
def test_a_series_is_one_item_in_the_order_of_its_places(tmp_path, turn):
    write_slices(tmp_path / "ct", turn=turn)
    (tmp_path / "ct/a.png").write_bytes(picture(NOISE))
    series, other = open_archive(tmp_path, series=True)
    assert other.ref.id == "ct/a.png" or series.ref.id == "ct/a.png"
    series, other = sorted((series, other), key=lambda entry: -len(entry.files))
    assert series.ref.id.startswith("ct/series-") and len(series.ref.id) == len("ct/series-") + 12
    places = [normal_of(turn) @ ds.ImagePositionPatient for ds in headers(series.files)]
    assert places == sorted(places) and len(series.files) == 6
    found = decode(series.files, keep=True)
    for frame, file in zip(found.frames, series.files, strict=True):
        np.testing.assert_array_equal(frame, decode([file]).frames[0])
    assert found.frames.strides[-1] == 0, "grey stays one byte a pixel"
    assert found.sources == tuple(file.read_bytes() for file in series.files)
    with Decoders(1) as pool:
        again = pool.decode(series, keep=True)
    np.testing.assert_array_equal(again.frames, found.frames)
    np.testing.assert_array_equal(again.grid.affine, found.grid.affine)
    assert again.sources == found.sources and again.digest == found.digest
    assert again.grid.shape == found.grid.shape and again.grid.spacing == tuple(SPACING)


def test_what_belongs_together(tmp_path):
    write_slices(tmp_path / "a")
    one = ids(tmp_path)
    assert len(one) == 1
    write_slices(tmp_path / "a", names="n{}.dcm", SeriesInstanceUID=UID + "9")
    write_slices(tmp_path / "a", names="t{}.dcm", turn=CORONAL)
    write_slices(tmp_path / "a", names="w{}.dcm", Columns=24, Rows=96)
    write_slices(tmp_path / "b")
    found = ids(tmp_path)
    assert len(found) == len(set(found)) == 5 and one[0] in found
    assert found == ids(tmp_path), "stable"
    hashes = [item.rpartition("-")[2] for item in found]
    assert hashes[-1] == one[0].rpartition("-")[2], "the same series in another folder"
    assert sum(len(e.files) for e in open_archive(tmp_path, series=True)) == 30


def test_what_stays_alone(tmp_path):
    write_slices(tmp_path, names="IM{:04}")
    common = {"SeriesInstanceUID": UID, "ImageOrientationPatient": OBLIQUE}
    others = {
        "frames.dcm": dicom(np.stack([deep()] * 3), **common),
        "no uid.dcm": dicom(deep()),
        "deflated.dcm": dicom(deep(), uid.DeflatedExplicitVRLittleEndian, **common),
        "damaged.dcm": dicom(deep(), **common)[:200],
        "garbage.dcm": bytes(128) + b"DICM" + os.urandom(500),
        "png.dcm": picture(NOISE),
        "empty.dcm": b"",
        "a.png": picture(NOISE),
    }
    for name, data in others.items():
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "pipe.dcm")
    (tmp_path / "x.tar").write_bytes(tar({"1.dcm": dicom(deep(), **common)}))
    found = ids(tmp_path)
    assert {item for item in found if "series-" not in item} == {*others, "pipe.dcm", "x.tar/1.dcm"}
    assert len(found) == len(others) + 3
    assert len(ids(tmp_path, include=["IM*"])) == 1
    assert len(ids(tmp_path, exclude=["IM0003"])) == len(found)
    assert all("series" not in entry.ref.id for entry in open_archive(tmp_path))
    assert len(list(open_archive(tmp_path))) == len(others) + 2 + 6


def test_order_without_places(tmp_path):
    write_slices(tmp_path, ImagePositionPatient=None)
    (entry,) = open_archive(tmp_path, series=True)
    numbers = [ds.InstanceNumber for ds in headers(entry.files)]
    assert numbers == sorted(numbers)
    found = decode(entry.files)
    assert found.grid.affine is None and len(found.frames) == 6
    for file in tmp_path.iterdir():
        ds = pydicom.dcmread(file)
        del ds.InstanceNumber
        ds.save_as(file)
    (entry,) = open_archive(tmp_path, series=True)
    assert [f.name for f in entry.files] == sorted(f.name for f in tmp_path.iterdir())


def refused(files, limits: Limits = LIMITS) -> str:
    with pytest.raises(InputError) as caught:
        decode(files, limits)
    assert "Secret" not in str(caught.value) and UID not in str(caught.value)
    return caught.value.reason


def test_series_that_cannot_be_read(tmp_path):
    write_slices(tmp_path)
    (entry,) = open_archive(tmp_path, series=True)
    area = NOISE.size
    assert refused(entry.files, Limits(max_pixels=6 * area - 1)) == "too-large"
    decode(entry.files, Limits(max_pixels=6 * area))
    size = entry.files[0].stat().st_size
    assert refused(entry.files, Limits(max_bytes=3 * size)) == "too-large"
    whole = entry.files[3].read_bytes()
    entry.files[3].write_bytes(whole[: len(whole) // 2])
    assert refused(entry.files) == "truncated"
    entry.files[3].write_bytes(dicom(deep()[:24]))
    assert refused(entry.files) == "unsupported"
    entry.files[3].write_bytes(picture(NOISE))
    assert refused(entry.files) == "unreadable"
    entry.files[3].unlink()
    assert refused(entry.files) == "vanished"
    with pytest.raises(ConfigError, match="folder"):
        open_archive(entry.files[0], series=True)


def test_slices_of_nothing_but_air_are_slices(tmp_path):
    write_slices(tmp_path)
    air = sorted(tmp_path.iterdir())[2]
    ds = pydicom.dcmread(air)
    ds.PixelData = bytes(len(ds.PixelData))
    ds.save_as(air)
    assert refused([air]) == "constant"
    (entry,) = open_archive(tmp_path, series=True)
    frames = decode(entry.files).frames
    assert frames[entry.files.index(air)].max() == 0
    for file in tmp_path.iterdir():
        ds = pydicom.dcmread(file)
        ds.PixelData = bytes(len(ds.PixelData))
        ds.save_as(file)
    assert refused(entry.files) == "constant"


def test_ids_tell_nothing_and_only_what_is_needed_is_parsed(tmp_path, monkeypatch):
    seen = []
    parse = pydicom.dcmread

    def watch(*args, **kwargs):
        seen.append(parse(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr("pydicom.dcmread", watch)
    write_slices(tmp_path)
    (item,) = ids(tmp_path)
    assert UID not in item and len(seen) == 6
    assert all("SeriesInstanceUID" in ds and "PatientName" not in ds for ds in seen)
    assert all("PixelData" not in ds for ds in seen)
