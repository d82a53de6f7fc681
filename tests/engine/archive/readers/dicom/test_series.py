"""DICOM series and geometry; nibabel's own reading of the headers is the oracle."""

import io
import itertools
import os
import random
from pathlib import Path

import numpy as np
import pydicom
import pytest
from bad_input import NOISE, deep, dicom, picture, tar
from pydicom import uid
from pydicom.dataset import Dataset

from medclipsam.engine.archive import Decoders, Limits, decode, open_archive
from medclipsam.engine.archive.readers.dicom.dicom import read_dicom
from medclipsam.engine.errors import ConfigError, InputError

# pytest overrides the filter that the engine installs against pydicom's remarks.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*"),
    pytest.mark.filterwarnings("ignore:The DICOM readers are highly experimental"),
]

UID = "1.2.826.0.1.3680043.8.498.1"
AXIAL, CORONAL = [1.0, 0, 0, 0, 1, 0], [1.0, 0, 0, 0, 0, -1]
OBLIQUE = [0.8, 0.6, 0, -0.36, 0.48, 0.8]
SPACING = [0.5, 0.75]
EXACT = 1e-6  # mm: decimal strings hold 16 characters
LIMITS = Limits()


def normal_of(turn) -> np.ndarray:
    return np.cross(turn[:3], turn[3:])


def write_slices(folder: Path, count=6, turn=OBLIQUE, step=2.5, names="{:03}.dcm", **elements):
    """Slices whose names, numbers and places are in three different orders."""
    folder.mkdir(parents=True, exist_ok=True)
    order = random.Random(4).sample(range(count), count)
    for k, name in zip(range(count), order, strict=True):
        place = np.array([-20.0, 30, 11]) + step * k * normal_of(turn)
        pixels = np.roll(deep(), 5 * k, 0)
        data = dicom(
            pixels,
            **{
                "SeriesInstanceUID": UID,
                "InstanceNumber": (7 * k) % count,
                "ImageOrientationPatient": turn,
                "ImagePositionPatient": [round(float(v), 9) for v in place],
                "PixelSpacing": SPACING,
                "SliceThickness": 2.0,
                "WindowCenter": 1800,
                "WindowWidth": 3000,
                **elements,
            },
        )
        (folder / names.format(name)).write_bytes(data)


def ids(folder, **options) -> list[str]:
    return [entry.ref.id for entry in open_archive(folder, series=True, **options)]


def headers(files) -> list[Dataset]:
    return [pydicom.dcmread(file) for file in files]


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


def oracle(ds: Dataset) -> np.ndarray:
    """(4, 4) from (column, row, frame) to RAS, by nibabel's from (row, column, frame) to LPS.

    Its normal is columns × rows, ours is rows × columns, as DICOM sorts slices.
    """
    from nibabel.nicom.dicomwrappers import wrapper_from_data

    swap = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]])
    return np.diag([-1.0, -1, 1, 1]) @ wrapper_from_data(ds).affine @ swap


@pytest.mark.parametrize("turn", [AXIAL, CORONAL, OBLIQUE])
def test_the_affine_of_a_series_agrees_with_nibabel(tmp_path, turn):
    write_slices(tmp_path, turn=turn)
    (entry,) = open_archive(tmp_path, series=True)
    grid = decode(entry.files).grid
    side = NOISE.shape[0]
    assert grid.shape == (side, side, 6) and grid.affine.dtype == np.float64
    for frame, ds in enumerate(headers(entry.files)):
        for column, row in itertools.product((0, 7), (0, 11)):
            ours = grid.affine @ (column, row, frame, 1)
            np.testing.assert_allclose(ours, oracle(ds) @ (column, row, 0, 1), atol=EXACT)


def test_the_affine_of_one_file_agrees_with_nibabel(tmp_path):
    write_slices(tmp_path, count=1)
    (entry,) = open_archive(tmp_path, series=True)
    assert entry.ref.id == "000.dcm", "a series of one file is that file"
    grid = decode(entry.files).grid
    (ds,) = headers(entry.files)
    ds.SpacingBetweenSlices = ds.SliceThickness
    np.testing.assert_allclose(grid.affine, oracle(ds), atol=EXACT)
    assert grid.shape == (*NOISE.shape, 1)
    ds.SpacingBetweenSlices = 3.5
    assert np.linalg.norm(read(ds).affine[:, 2]) == pytest.approx(3.5) and not grid.doubt
    del ds.SliceThickness, ds.SpacingBetweenSlices
    assert np.linalg.norm(read(ds).affine[:, 2]) == pytest.approx(1.0)
    assert read(ds).doubt == "the file tells no slice thickness"


def read(ds: Dataset):
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return read_dicom(stream.getvalue(), LIMITS)[1]


def multiframe(places, turn=OBLIQUE) -> Dataset:
    ds = pydicom.dcmread(io.BytesIO(dicom(np.stack([deep()] * len(places)))))
    ds.SOPClassUID = uid.EnhancedMRImageStorage
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    shared = Dataset()
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = SPACING, 2.0
    measures.SpacingBetweenSlices = 2.5
    orientation.ImageOrientationPatient = turn
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [orientation]
    ds.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for number, place in enumerate(places, start=1):
        group, position, content = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [round(float(v), 9) for v in place]
        content.StackID, content.InStackPositionNumber = "1", number
        content.DimensionIndexValues = [1, number]
        group.PlanePositionSequence, group.FrameContentSequence = [position], [content]
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = groups
    ds.DimensionIndexSequence = []
    return ds


def test_the_affine_of_a_multi_frame_object_agrees_with_nibabel():
    places = [np.array([-5.0, 3, 2]) + 2.5 * k * normal_of(OBLIQUE) for k in range(4)]
    grid = read(multiframe(places))
    assert grid.shape == (*NOISE.shape, 4)
    lps = np.diag([-1.0, -1, 1])
    for frame, place in enumerate(places):
        np.testing.assert_allclose(grid.affine @ (0, 0, frame, 1), [*(lps @ place), 1], atol=EXACT)
    single = multiframe(places[:1])
    for element in single.SharedFunctionalGroupsSequence[0]:
        for inner in element.value[0]:
            setattr(single, inner.keyword, inner.value)
    single.ImagePositionPatient = [float(v) for v in places[0]]
    single.NumberOfFrames = 1
    single.SOPClassUID = uid.MRImageStorage
    np.testing.assert_allclose(grid.affine, oracle(single), atol=EXACT)
    backwards = read(multiframe(places[::-1]))
    np.testing.assert_allclose(backwards.affine[:, 2], -grid.affine[:, 2], atol=EXACT)


def test_geometry_that_makes_no_grid():
    places = [np.array([0.0, 0, 2.5 * k]) for k in range(4)]
    assert read(multiframe(places, AXIAL)).affine is not None
    uneven, still, flat = list(places), [places[0]] * 4, [np.array([k, 0.0, 0]) for k in range(4)]
    uneven[2] = uneven[2] + (0, 0, 0.11)
    nearly = list(places)
    nearly[2] = nearly[2] + (0, 0, 0.09)
    assert read(multiframe(nearly, AXIAL)).affine is not None
    for bad in (uneven, still, flat):
        grid = read(multiframe(bad, AXIAL))
        assert grid.affine is None and grid.shape == () and grid.spacing == tuple(SPACING)
        assert grid.doubt
    for turn in ([1, 0, 0, 1, 0, 0], [2, 0, 0, 0, 1, 0]):
        assert read(multiframe(places, turn)).affine is None
    plain = multiframe(places, AXIAL)
    del plain.PerFrameFunctionalGroupsSequence
    plain.ImagePositionPatient = [0, 0, 0]
    assert read(plain).affine is None
    own = multiframe(places, AXIAL)
    turned = Dataset()
    turned.ImageOrientationPatient = CORONAL
    own.PerFrameFunctionalGroupsSequence[1].PlaneOrientationSequence = [turned]
    assert read(own).affine is None


def test_damaged_geometry_does_not_cost_the_picture(tmp_path):
    good = dicom(deep(), ImagePositionPatient=[1.0, 2.0, 3.0], ImageOrientationPatient=AXIAL,
                 PixelSpacing=SPACING)  # fmt: skip
    assert decode(good).grid.affine is not None
    place = b"1.0\\2.0\\3.0"
    assert good.count(place) == 1
    for damaged in (b"1.x\\2.0\\3.0", b"1.0\\2.0    ", b"           ", b"nan\\2.0\\3.0"):
        found = decode(good.replace(place, damaged))
        assert found.frames.shape[0] == 1 and found.grid.affine is None


def test_tilted_gantries_shear_the_grid(tmp_path):
    write_slices(tmp_path, turn=AXIAL)
    for k, file in enumerate(sorted(tmp_path.iterdir(), key=lambda f: float(place_of(f)[2]))):
        ds = pydicom.dcmread(file)
        ds.ImagePositionPatient[1] += 0.5 * k
        ds.save_as(file)
    (entry,) = open_archive(tmp_path, series=True)
    affine = decode(entry.files).grid.affine
    for frame, file in enumerate(entry.files):
        x, y, z = place_of(file)
        np.testing.assert_allclose(affine @ (0, 0, frame, 1), [-x, -y, z, 1], atol=EXACT)


def place_of(file: Path):
    return pydicom.dcmread(file).ImagePositionPatient


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
