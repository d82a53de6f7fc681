"""Segmentations come back frame by frame and lie where their source lies."""

import io

import numpy as np
import pytest
from dicoms.segmented import (
    AXES,
    FRAMES,
    HEIGHT,
    MASKS,
    POSITION_MM,
    SPACING,
    SPOTS,
    STEP,
    WIDTH,
    by_frame,
    by_instance,
    cine,
    encode,
    enhanced,
    expected_places,
    image,
    places,
    read,
    series,
    stacked,
    to_bytes,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread, uid
from pydicom.dataset import Dataset

from medclipsam.engine.archive.limits import Limits
from medclipsam.engine.archive.readers.dicom.dicom import read_dicom
from medclipsam.engine.archive.readers.dicom.series import read_series
from medclipsam.engine.outputs.dicomseg import encode_dicom_seg

# pytest overrides the filters that the engine installs against remarks on elements.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:highdicom.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:highdicom.*"),
]


@pytest.mark.parametrize("order", [1, -1], ids=["as stored", "reversed"])
def test_a_series_comes_back_slice_by_slice(order):
    sources = series()[::order]
    seg = read(encode(sources, {label: mask[::order] for label, mask in MASKS.items()}))
    np.testing.assert_array_equal(by_instance(seg, sources), stacked()[::order])
    assert places(seg) == expected_places(MASKS)
    assert seg.FrameOfReferenceUID == "1.2.826.1.9"


def test_one_slice():
    source = series()[0]
    masks = {"m": MASKS["liver mass"][:1]}
    seg = read(encode([source], masks))
    np.testing.assert_array_equal(by_instance(seg, [source])[..., 0], masks["m"])
    assert places(seg) == expected_places(masks)


@pytest.mark.parametrize("shared", [True, False])
def test_a_multi_frame_source(shared):
    source = enhanced(shared=shared)
    seg = read(encode([source]))
    np.testing.assert_array_equal(by_frame(seg, source), stacked())
    assert places(seg) == expected_places(MASKS)


@pytest.mark.parametrize(
    "source",
    [cine(), enhanced(spots=[SPOTS[0], SPOTS[1]] * 2, SOPClassUID=uid.EnhancedMRImageStorage)],
    ids=["ultrasound", "positions that repeat"],
)
def test_frames_without_places_refer_to_their_source(source):
    data = encode([source])
    seg = read(data)
    np.testing.assert_array_equal(by_frame(seg, source), stacked())
    assert "FrameOfReferenceUID" not in seg
    plain = dcmread(io.BytesIO(data))
    assert plain.NumberOfFrames == stacked().any((1, 2)).sum()
    named = plain.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0]
    for reference in (named, plain.SourceImageSequence[0]):
        assert reference.ReferencedSOPClassUID == source.SOPClassUID
        assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
    for frame in plain.PerFrameFunctionalGroupsSequence:
        made_of = frame.DerivationImageSequence[0].SourceImageSequence[0]
        assert made_of.ReferencedSOPClassUID == source.SOPClassUID
        content = frame.FrameContentSequence[0]
        number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        assert list(content.DimensionIndexValues) == [number, made_of.ReferencedFrameNumber]


def test_single_pictures_without_places():
    for kind in (uid.UltrasoundImageStorage, uid.DigitalXRayImageStorageForPresentation):
        source = image(kind, PixelSpacing=list(SPACING))
        masks = {"m": MASKS["liver mass"][:1]}
        seg = read(encode([source], masks))
        np.testing.assert_array_equal(by_instance(seg, [source])[..., 0], masks["m"])


def test_a_series_that_is_not_parallel_is_not_placed():
    sources = series()
    sources[2].ImageOrientationPatient = [1, 0, 0, 0, 0, 1]
    seg = read(encode(sources))
    np.testing.assert_array_equal(by_instance(seg, sources), stacked())
    assert "FrameOfReferenceUID" not in seg


@pytest.mark.parametrize("rounding", [1e-6, 4e-4])
def test_a_series_that_rounds_differently_is_placed(rounding):
    sources = series()
    sources[2].ImageOrientationPatient = [v + rounding for v in AXES]
    sources[1].PixelSpacing = [v + rounding for v in SPACING]
    seg = read(encode(sources))
    np.testing.assert_array_equal(by_instance(seg, sources), stacked())
    assert places(seg) == expected_places(MASKS)


@pytest.mark.parametrize("left_out", [1, 2])
def test_a_series_with_a_gap_keeps_its_true_places(left_out):
    sources = series()
    kept = [k for k in range(FRAMES) if k != left_out]
    masks = {label: mask[kept] for label, mask in MASKS.items()}
    seg = read(encode([sources[k] for k in kept], masks))
    there = {label: mask.copy() for label, mask in MASKS.items()}
    for mask in there.values():
        mask[left_out] = False
    assert places(seg) == expected_places(there)


def dose() -> Dataset:
    return image(
        uid.RTDoseStorage,
        NumberOfFrames=FRAMES,
        FrameOfReferenceUID="1.2.826.1.9",
        ImagePositionPatient=SPOTS[0],
        ImageOrientationPatient=AXES,
        PixelSpacing=list(SPACING),
        GridFrameOffsetVector=[k * STEP for k in range(FRAMES)],
    )


def scintigram() -> Dataset:
    where = Dataset()
    where.ImagePositionPatient, where.ImageOrientationPatient = SPOTS[0], AXES
    return image(
        uid.NuclearMedicineImageStorage,
        NumberOfFrames=FRAMES,
        FrameOfReferenceUID="1.2.826.1.9",
        DetectorInformationSequence=[where],
        PixelSpacing=list(SPACING),
        SpacingBetweenSlices=STEP,
        SliceVector=list(range(1, FRAMES + 1)),
    )


@pytest.mark.parametrize("make", [dose, scintigram])
def test_frames_placed_by_offsets_and_detectors_lie_there(make):
    source = make()
    seg = read(encode([source]))
    np.testing.assert_array_equal(by_frame(seg, source), stacked())
    assert places(seg) == expected_places(MASKS)
    assert seg.FrameOfReferenceUID == "1.2.826.1.9"
    assert encode([source]) == encode([make()])


@pytest.mark.parametrize("kind", ["series", "multi-frame"])
def test_it_lies_where_the_reader_says_the_picture_lies(kind):
    """Two ways to the patient: the affine of the reader, and DICOM's equation on the result."""
    sources = [to_bytes(ds) for ds in (series() if kind == "series" else [enhanced()])]
    if kind == "series":
        frames, grid = read_series(sources, Limits())
    else:
        frames, grid = read_dicom(sources[0], Limits())
    assert frames.shape[:3] == (FRAMES, HEIGHT, WIDTH) and grid.affine is not None
    seg = read(encode_dicom_seg(sources, MASKS, {}))
    for number, mask in enumerate(MASKS.values(), start=1):
        frame, row, column = np.argwhere(mask).T
        index = np.stack([column, row, frame, np.ones_like(row)])
        expected = (np.diag([-1, -1, 1]) @ (grid.affine @ index)[:3]).T
        found = np.array([at for which, *at in places(seg) if which == number]) * POSITION_MM
        apart = np.linalg.norm(expected[:, None] - found, axis=-1)
        assert apart.shape == (mask.sum(), mask.sum())
        assert max(apart.min(0).max(), apart.min(1).max()) < 2 * POSITION_MM


def test_a_missing_slice_thickness_is_taken_from_positions():
    sources, volume = series(SliceThickness=None), enhanced()
    del volume.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness
    for found, seg in (
        (by_instance, read(encode(sources))),
        (by_frame, read(encode([volume]))),
    ):
        source = sources if found is by_instance else volume
        np.testing.assert_array_equal(found(seg, source), stacked())
        shared = seg.SharedFunctionalGroupsSequence[0]
        assert shared.PixelMeasuresSequence[0].SliceThickness == pytest.approx(2.5, abs=1e-3)
        assert places(seg) == expected_places(MASKS)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_any_stack_of_a_cine_comes_back(frames, labels, seed):
    rng = np.random.default_rng(seed)
    masks = {f"l{k}": rng.random((frames, HEIGHT, WIDTH)) > 0.97 for k in range(labels)}
    source = cine(frames)
    seg = read(encode([source], masks))
    np.testing.assert_array_equal(by_frame(seg, source, frames), stacked(masks))
