"""Segmentations say what they are, of whom, and how they came about, and nothing of today."""

import io
import subprocess
import sys

import numpy as np
import pytest
from dicoms.segmented import (
    FRAMES,
    HEIGHT,
    MASKS,
    PROMPTS,
    WIDTH,
    by_frame,
    cine,
    encode,
    enhanced,
    read,
    series,
    stacked,
    to_bytes,
)
from pydicom import dcmread, uid
from pydicom.dataset import Dataset

from medclipsam.engine.errors import InputError
from medclipsam.engine.outputs import Labelled, encode_outputs
from medclipsam.engine.types import Grid, ItemRef

# pytest overrides the filters that the engine installs against remarks on elements.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:highdicom.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:highdicom.*"),
]


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
