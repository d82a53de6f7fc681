"""DICOM segmentations: highdicom and pydicom read back what was meant, where it was meant."""

import io
import subprocess
import sys

import highdicom
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread, uid
from pydicom.dataset import Dataset, FileMetaDataset

from medclipsam.engine.archive.limits import Limits
from medclipsam.engine.archive.readers.dicom.dicom import read_dicom
from medclipsam.engine.archive.readers.dicom.series import read_series
from medclipsam.engine.errors import InputError
from medclipsam.engine.outputs import Labelled, encode_outputs
from medclipsam.engine.outputs.dicomseg import encode_dicom_seg
from medclipsam.engine.types import Grid, ItemRef

# pytest overrides the filters that the engine installs against remarks on elements.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:highdicom.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:highdicom.*"),
]

FRAMES, HEIGHT, WIDTH = 4, 13, 9  # 117 pixels: frames do not end at bytes
SPACING = (0.75, 1.25)  # rows, columns
ANGLE = 0.3
AXES = [np.cos(ANGLE), np.sin(ANGLE), 0.0, -np.sin(ANGLE), np.cos(ANGLE), 0.0]
NORMAL = np.cross(AXES[:3], AXES[3:])
START, STEP = np.array([-31.5, 12.25, 400.0]), -2.5
SPOTS = [np.round(START + k * STEP * NORMAL, 4).tolist() for k in range(FRAMES)]
RNG = np.random.default_rng(5)
MASKS = {label: RNG.random((FRAMES, HEIGHT, WIDTH)) > 0.8 for label in ("liver mass", "Zyste ü")}
MASKS["Zyste ü"][1] = False
PROMPTS = {"liver mass": "a mass in the liver", "Zyste ü": "a cyst"}
POSITION_MM = 1e-3  # decimal strings of DICOM hold 16 signs


def image(kind: str, **elements) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = kind
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.PatientName, ds.PatientID = "Süß^Jörg", "P1"
    ds.PatientBirthDate, ds.PatientSex = "19600229", "M"
    ds.AccessionNumber, ds.StudyID, ds.ReferringPhysicianName = "A1", "S1", ""
    ds.StudyDate, ds.StudyTime = "20190405", "101112.5"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.826.1", "1.2.826.1.7"
    ds.SeriesNumber, ds.InstanceNumber = 3, 1
    ds.Modality = "CT"
    ds.Rows, ds.Columns, ds.SamplesPerPixel = HEIGHT, WIDTH, 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    ds.SOPInstanceUID = "1.2.826.1.7.1"
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    size = HEIGHT * WIDTH * int(ds.get("NumberOfFrames") or 1)
    ds.PixelData = (np.arange(size + size % 2) % 251).astype(np.uint8).tobytes()
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds


def to_bytes(ds: Dataset) -> bytes:
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def series(**elements) -> list[Dataset]:
    return [
        image(
            uid.CTImageStorage,
            SOPInstanceUID=f"1.2.826.1.7.{k + 1}",
            InstanceNumber=k + 1,
            FrameOfReferenceUID="1.2.826.1.9",
            ImagePositionPatient=SPOTS[k],
            ImageOrientationPatient=AXES,
            PixelSpacing=list(SPACING),
            **{"SliceThickness": 2.5} | elements,
        )
        for k in range(FRAMES)
    ]


def group(**sequences: dict) -> Dataset:
    ds = Dataset()
    for keyword, elements in sequences.items():
        item = Dataset()
        for name, value in elements.items():
            setattr(item, name, value)
        setattr(ds, keyword, [item])
    return ds


def enhanced(spots=SPOTS, shared: bool = True, **elements) -> Dataset:
    """An enhanced multi-frame MR; ``shared`` or, as some vendors do, said for each frame."""
    common = {
        "PlaneOrientationSequence": {"ImageOrientationPatient": AXES},
        "PixelMeasuresSequence": {"PixelSpacing": list(SPACING), "SliceThickness": 2.5},
    }
    frames = [
        group(
            PlanePositionSequence={"ImagePositionPatient": spot},
            FrameContentSequence={"DimensionIndexValues": [k + 1]},
            **({} if shared else common),
        )
        for k, spot in enumerate(spots)
    ]
    return image(
        uid.EnhancedMRImageStorage,
        NumberOfFrames=len(spots),
        FrameOfReferenceUID="1.2.826.1.9",
        SharedFunctionalGroupsSequence=[group(**(common if shared else {}))],
        PerFrameFunctionalGroupsSequence=frames,
        **elements,
    )


def cine(frames: int = FRAMES, **elements) -> Dataset:
    kind = uid.UltrasoundMultiFrameImageStorage
    return image(kind, NumberOfFrames=frames, Modality="US", **elements)


def encode(sources: list[Dataset], masks=MASKS, prompts=PROMPTS) -> bytes:
    return encode_dicom_seg([to_bytes(ds) for ds in sources], masks, prompts)


def read(data: bytes) -> highdicom.seg.Segmentation:
    return highdicom.seg.segread(io.BytesIO(data))


def by_instance(seg, sources) -> np.ndarray:
    """(F, H, W, S) as highdicom finds it by what each source file is called."""
    return seg.get_pixels_by_source_instance([ds.SOPInstanceUID for ds in sources])


def by_frame(seg, source, count=FRAMES) -> np.ndarray:
    """(F, H, W, S) as highdicom finds it by the frames of the source; left-out ones are empty."""
    return seg.get_pixels_by_source_frame(
        source.SOPInstanceUID, list(range(1, count + 1)), assert_missing_frames_are_empty=True
    )


def stacked(masks=MASKS) -> np.ndarray:
    return np.stack(list(masks.values()), axis=-1)


def places(seg: Dataset) -> set[tuple]:
    """(segment, x, y, z) in the patient of every set pixel, by DICOM's equation C.7.6.2.1-1."""
    shared = seg.SharedFunctionalGroupsSequence[0]
    axes = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    down, right = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    pixels = seg.pixel_array.reshape(-1, HEIGHT, WIDTH)
    found = set()
    for plane, frame in zip(pixels, seg.PerFrameFunctionalGroupsSequence, strict=True):
        spot = np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        owner = shared if "SegmentIdentificationSequence" in shared else frame
        number = owner.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        for row, column in np.argwhere(plane):
            at = spot + axes[:3] * right * column + axes[3:] * down * row
            found.add((number, *(round(float(v) / POSITION_MM) for v in at)))
    return found


def expected_places(masks) -> set[tuple]:
    axes = np.array(AXES)
    found = set()
    for number, mask in enumerate(masks.values(), start=1):
        for frame, row, column in np.argwhere(mask):
            at = SPOTS[frame] + axes[:3] * SPACING[1] * column + axes[3:] * SPACING[0] * row
            found.add((number, *(round(float(v) / POSITION_MM) for v in at)))
    return found


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


@pytest.mark.parametrize("sources", [series(), [enhanced()], [cine()]], ids=["CT", "MR", "US"])
def test_nothing_found_is_still_a_valid_object(sources):
    masks = {label: np.zeros_like(mask) for label, mask in MASKS.items()}
    seg = read(encode(sources, masks))
    assert seg.NumberOfFrames == FRAMES * len(masks)
    assert not seg.pixel_array.any()
    assert [seg.get_segment_description(n).SegmentLabel for n in (1, 2)] == list(masks)


def test_empty_frames_are_left_out_and_overlap_is_told():
    for source in (enhanced(), cine()):
        seg = read(encode([source]))
        assert seg.NumberOfFrames == 2 * FRAMES - 1 and seg.SegmentsOverlap == "YES"
        apart = {"a": MASKS["liver mass"], "b": ~MASKS["liver mass"]}
        assert read(encode([source], apart)).SegmentsOverlap == "NO"


def test_segments_say_what_they_are_and_how_they_came_about():
    seg = read(encode([cine()], {"a\\b" + "x" * 80: MASKS["liver mass"]}, {}))
    segment = seg.get_segment_description(1)
    assert segment.SegmentLabel == "a/b" + "x" * 61
    seg = read(encode(series()))
    assert seg.SegmentationType == "BINARY" and seg.SOPClassUID == uid.SegmentationStorage
    for number, (label, prompt) in enumerate(PROMPTS.items(), start=1):
        segment = seg.get_segment_description(number)
        assert segment.SegmentLabel == label and segment.SegmentDescription == prompt
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        assert segment.SegmentAlgorithmName == "MedCLIP-SAM"
        for codes in (
            segment.SegmentedPropertyCategoryCodeSequence,
            segment.SegmentedPropertyTypeCodeSequence,
        ):
            assert (codes[0].CodeValue, codes[0].CodingSchemeDesignator) == ("85756007", "SCT")


def test_it_is_filed_with_its_source():
    plain = dcmread(io.BytesIO(encode(series())))
    source = series()[0]
    for keyword in ("PatientName", "PatientID", "PatientSex", "StudyInstanceUID", "StudyDate"):
        assert plain[keyword].value == source[keyword].value, keyword
    assert plain.SpecificCharacterSet == "ISO_IR 192"
    assert plain.Modality == "SEG" and plain.SeriesInstanceUID != source.SeriesInstanceUID
    assert (plain.ContentDate, plain.ContentTime) == ("20190405", "101112.5")


def test_equal_input_gives_equal_bytes():
    for sources in (series(), [enhanced()], [cine()]):
        first = encode(sources)
        assert encode(sources) == first
        other = {label: ~mask for label, mask in MASKS.items()}
        one, two = dcmread(io.BytesIO(first)), dcmread(io.BytesIO(encode(sources, other)))
        assert one.SOPInstanceUID != two.SOPInstanceUID
        assert one.SeriesInstanceUID == two.SeriesInstanceUID
        for found in (one.SOPInstanceUID, one.SeriesInstanceUID):
            assert found.startswith("2.25.") and found.is_valid


def test_no_date_of_today_is_left(monkeypatch):
    import datetime

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime(2077, 1, 2, 3, 4, 5)

    monkeypatch.setattr(datetime, "datetime", Later)
    for sources in (series(), [cine()]):
        assert b"2077" not in encode(sources)


def test_optional_values_may_be_missing_or_malformed():
    def strip(ds: Dataset) -> Dataset:
        for keyword in ("PatientName", "PatientID", "AccessionNumber", "StudyTime", "StudyID"):
            delattr(ds, keyword)
        ds.PatientSex = "F "
        ds.add_new("PatientSex", "CS", "UNKNOWN")
        ds.add_new("SeriesNumber", "IS", None)
        ds.add_new("InstanceNumber", "IS", "0")
        del ds.StudyDate
        return ds

    for sources in (series(), [cine()]):
        seg = read(encode([strip(ds) for ds in sources]))
        assert seg.ContentDate == "19000101" and seg.PatientSex == ""
        assert seg.InstanceNumber == 1


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


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_a_source_without_identity_is_refused(keyword):
    source = cine()
    delattr(source, keyword)
    with pytest.raises(InputError, match=keyword) as caught:
        encode([source])
    assert (caught.value.stage, caught.value.reason) == ("encode_outputs", "unsupported")


def test_files_and_frames_must_match():
    with pytest.raises(InputError):
        encode(series()[:3])


def test_messages_tell_nothing_of_the_patient():
    source = cine()
    source.Rows = HEIGHT + 1
    with pytest.raises(InputError) as caught:
        encode([source])
    for secret in ("Jörg", "P1", "1960", "1.2.826"):
        assert secret not in str(caught.value)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_any_stack_of_a_cine_comes_back(frames, labels, seed):
    rng = np.random.default_rng(seed)
    masks = {f"l{k}": rng.random((frames, HEIGHT, WIDTH)) > 0.97 for k in range(labels)}
    source = cine(frames)
    seg = read(encode([source], masks))
    np.testing.assert_array_equal(by_frame(seg, source, frames), stacked(masks))


def test_as_one_of_an_item_s_formats():
    """Segments stand in the order of the run's labels, withheld ones are left out."""
    source = cine()
    masks = {"c": MASKS["Zyste ü"], "b": MASKS["liver mass"], "a": ~MASKS["liver mass"]}
    labelled = Labelled(
        ref=ItemRef("case 1/IM7"),
        frames=np.zeros((FRAMES, HEIGHT, WIDTH, 3), np.uint8),
        grid=Grid("dicom"),
        masks=masks,
        withheld=frozenset({"b"}),
        sources=(to_bytes(source),),
    )
    ((path, data),) = encode_outputs(labelled, ["dicom-seg"], {"a": 1, "b": 2, "c": 3})
    assert str(path) == "dicom-seg/case 1/IM7~.dcm"
    seg = read(data)
    assert [seg.get_segment_description(n).SegmentLabel for n in (1, 2)] == ["a", "c"]
    expected = stacked({"a": masks["a"], "c": masks["c"]})
    np.testing.assert_array_equal(by_frame(seg, source), expected)


def test_nothing_heavy_is_loaded_before_it_is_needed_and_gdcm_never():
    code = (
        "import sys, medclipsam.engine.outputs as o\n"
        "print(*{'highdicom', 'pycocotools', 'torch', 'cv2'} & set(sys.modules))\n"
        "from medclipsam.engine.outputs.dicomseg import _describe\n"
        "_describe({'a': None}, {})\n"
        "print(*{'highdicom', 'gdcm', '_gdcm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["", "highdicom"]
