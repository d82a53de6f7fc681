"""Affines of DICOM series and multi-frame objects are nibabel's, or there is none."""

import io
import itertools
from pathlib import Path

import numpy as np
import pydicom
import pytest
from archives.drawn import NOISE, deep, dicom
from dicoms.slices import (
    AXIAL,
    CORONAL,
    EXACT,
    LIMITS,
    OBLIQUE,
    SPACING,
    headers,
    normal_of,
    write_slices,
)
from pydicom import uid
from pydicom.dataset import Dataset

from medclipsam.engine.archive import decode, open_archive
from medclipsam.engine.archive.readers.dicom.dicom import read_dicom

# pytest overrides the filter that the engine installs against pydicom's remarks.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*"),
    pytest.mark.filterwarnings("ignore:The DICOM readers are highly experimental"),
]


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
