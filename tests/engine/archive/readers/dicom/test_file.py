"""DICOM files without preamble, magic or transfer syntax: recognised safely or refused so."""

import io
import os
import struct
import tarfile
import zipfile

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import write_dataset

from medclipsam.engine.archive import Decoders, open_archive
from medclipsam.engine.archive.files import has_magic
from medclipsam.engine.archive.limits import Limits
from medclipsam.engine.archive.readers.dicom.dicom import read_dicom
from medclipsam.engine.archive.readers.dicom.file import (
    complete,
    is_dicom,
    read_header,
    resembles_dicom,
)
from medclipsam.engine.archive.readers.reader import decode
from medclipsam.engine.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")

HEIGHT, WIDTH = 21, 17
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
VALUES = (ROWS * 150 + COLUMNS * 19).astype(np.uint16)
PLAIN = {
    "implicit": uid.ImplicitVRLittleEndian,
    "explicit": uid.ExplicitVRLittleEndian,
    "big": uid.ExplicitVRBigEndian,
}


def dataset(syntax: str, number: int = 1) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = uid.SecondaryCaptureImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = f"1.2.3.{number}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.4", "1.2.5"
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.PatientName = "Secret^Patient"
    ds.InstanceNumber = number
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.ImagePositionPatient, ds.PixelSpacing = [0, 0, 3 * number], [1, 1]
    ds.SliceThickness = 3
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = VALUES.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    big = syntax == uid.ExplicitVRBigEndian
    ds.PixelData = np.roll(VALUES, number, 0).astype(">u2" if big else "<u2").tobytes()
    ds["PixelData"].VR = "OW"
    return ds


def whole(syntax: str, number: int = 1) -> bytes:
    stream = io.BytesIO()
    dataset(syntax, number).save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def body(syntax: str, number: int = 1) -> bytes:
    """The data set alone, as some devices write it."""
    stream = pydicom.filebase.DicomBytesIO()
    stream.is_little_endian = syntax != uid.ExplicitVRBigEndian
    stream.is_implicit_VR = syntax == uid.ImplicitVRLittleEndian
    write_dataset(stream, dataset(syntax, number))
    return stream.getvalue()


def without_syntax(data: bytes) -> bytes:
    """The meta header without its transfer syntax, its length corrected."""
    at = data.index(struct.pack("<HH2s", 2, 0x10, b"UI"))
    size = 8 + struct.unpack_from("<H", data, at + 6)[0]
    (length,) = struct.unpack_from("<I", data, 140)
    return data[:140] + struct.pack("<I", length - size) + data[144:at] + data[at + size :]


def variants(number: int = 1) -> dict[str, bytes]:
    found = {}
    for name, syntax in PLAIN.items():
        data = whole(syntax, number)
        found[f"{name}, no preamble"] = data[132:]
        found[f"{name}, only DICM"] = data[128:]
        found[f"{name}, no group 2"] = body(syntax, number)
        found[f"{name}, no syntax"] = without_syntax(data)
        found[f"{name}, neither"] = without_syntax(data)[132:]
        found[f"{name}, preamble without group 2"] = data[:132] + body(syntax, number)
    return found


def shown(data: bytes) -> np.ndarray:
    return read_dicom(data, Limits())[0]


def refused(data: bytes) -> tuple[str, str]:
    with pytest.raises(InputError) as caught:
        decode(data)
    assert "Secret" not in str(caught.value)
    return caught.value.reason, str(caught.value)


@pytest.mark.parametrize("name", variants())
def test_every_beginning(name):
    data = variants()[name]
    if "no group 2" in name:  # the oracle guesses here, as it may
        found = pydicom.dcmread(io.BytesIO(data), force=True)
        assert found.Rows == HEIGHT
    assert is_dicom(data) and is_dicom(data[:132])
    expected = shown(whole(uid.ExplicitVRLittleEndian))
    np.testing.assert_array_equal(decode(data).frames, expected)
    kept = decode(data, keep=True).sources[0]
    head = pydicom.dcmread(io.BytesIO(kept))
    assert head.SOPInstanceUID == "1.2.3.1" and head.Columns == WIDTH
    header = read_header(io.BytesIO(data), ["Rows", "SeriesInstanceUID"])
    assert header is not None and header.Rows == HEIGHT and "PatientName" not in header


def test_whole_files_are_left_as_they_are():
    for syntax in PLAIN.values():
        data = whole(syntax)
        assert complete(data) is data


def test_a_deflated_file_without_a_preamble():
    data = whole(uid.DeflatedExplicitVRLittleEndian)
    expected = shown(whole(uid.ExplicitVRLittleEndian))
    np.testing.assert_array_equal(decode(data[132:]).frames, expected)
    assert read_header(io.BytesIO(data[132:]), ["Rows"]) is None


@pytest.mark.parametrize("name", variants())
def test_cut_off_anywhere(name):
    data = variants()[name]
    for cut in range(1, len(data), 29):
        reason, _ = refused(data[:cut])
        assert reason in ("truncated", "no-pixels", "unreadable", "unsupported")
        if cut > 600:
            assert reason in ("truncated", "no-pixels")


def test_with_and_without_suffix_in_every_kind_of_archive(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    names = [f"{k:02}{'.dcm' if k % 2 else ''}" for k in range(len(variants()))]
    for name, data in zip(names, variants().values(), strict=True):
        (folder / name).write_bytes(data)
        assert has_magic(folder / name)
    (folder / "README").write_bytes(b"\x08\0 is no tag, and this is no image" * 9)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for path in sorted(folder.iterdir()):
            packed.write(path, path.name)
    with tarfile.open(tmp_path / "a.tar", "w") as packed:
        packed.add(folder, "in")
    with Decoders(1) as pool:
        for archive in (folder, tmp_path / "a.zip", tmp_path / "a.tar"):
            entries = list(open_archive(archive))
            assert len(entries) == len(names)
            for entry in entries:
                assert pool.decode(entry).frames.shape[1:3] == (HEIGHT, WIDTH)


@pytest.mark.parametrize("name", ["explicit, no group 2", "implicit, no preamble"])
def test_a_series_of_them_is_one_volume(name, tmp_path):
    for number in range(1, 5):
        (tmp_path / f"{number}").write_bytes(variants(number)[name])
    (entry,) = open_archive(tmp_path, series=True)
    with Decoders(1) as pool:
        decoded = pool.decode(entry)
    assert decoded.frames.shape[0] == 4 and decoded.grid.affine is not None


def test_what_is_not_sure_is_refused_in_these_words():
    """Beginnings that may be DICOM: another first group, one element, a long first one."""
    data = body(uid.ExplicitVRLittleEndian)
    later = data[data.index(struct.pack("<HH", 0x10, 0x10)) :]
    long = struct.pack("<HH2sH", 8, 8, b"CS", 400) + b"A" * 400 + data
    for odd in (later, long, data[:18], struct.pack("<HHI", 8, 5, 10) + b"ISO_IR 100" * 9):
        assert not is_dicom(odd) and resembles_dicom(odd)
        reason, message = refused(odd)
        assert reason == "unsupported" and "recognised safely" in message


def test_what_is_no_dicom_is_not_taken_for_one():
    rng = np.random.default_rng(4)
    starts = [bytes(200), b"\x08\0" * 100, b"\x02\0" * 100, b"MZ" + bytes(200), b"text " * 50]
    starts += [rng.bytes(200) for _ in range(2000)]
    starts += [b"\x08\0\x05\0" + rng.bytes(200) for _ in range(2000)]
    assert not any(is_dicom(start) for start in starts)


def test_compressed_pixels_without_a_transfer_syntax():
    ds = dataset(uid.ExplicitVRLittleEndian)
    ds.compress(uid.RLELossless)
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    reason, message = refused(without_syntax(stream.getvalue()))
    assert reason == "unsupported" and "compressed" in message
    lie = stream.getvalue().replace(b"1.2.840.10008.1.2.5", b"1.2.840.10008.1.2.1")
    assert refused(lie)[0] == "unsupported"


@pytest.mark.parametrize(
    "syntax, words",
    [
        (uid.MPEG2MPML, "MPEG2"),
        (uid.MPEG4HP41, "MPEG-4"),
        (uid.HEVCMP51, "HEVC"),
        ("1.2.840.10008.1.2.4.94", "JPIP"),
        ("1.2.840.10008.1.2.4.55", "Full Progression"),
        ("1.2.840.10008.1.2.1.98", "Encapsulated Uncompressed"),
        ("1.2.840.10008.1.20", "Papyrus"),
        ("1.2.840.10008.1.2.4.110", "unknown"),
        ("1.2.840.113619.5.2", "private"),
        ("2.25.12345", "private"),
    ],
)
def test_transfer_syntaxes_that_are_not_read_are_named(syntax, words):
    data = whole(uid.ExplicitVRLittleEndian)
    at = data.index(struct.pack("<HH2s", 2, 0x10, b"UI"))
    size = struct.unpack_from("<H", data, at + 6)[0]
    value = syntax.encode() + b"\0" * (len(syntax) % 2)
    renamed = data[: at + 6] + struct.pack("<H", len(value)) + value + data[at + 8 + size :]
    renamed = (
        renamed[:140]
        + struct.pack("<I", struct.unpack_from("<I", data, 140)[0] + len(value) - size)
        + renamed[144:]
    )
    assert (
        pydicom.dcmread(
            io.BytesIO(renamed), stop_before_pixels=True, specific_tags=[]
        ).file_meta.TransferSyntaxUID
        == syntax
    )
    reason, message = refused(renamed)
    assert reason == "unsupported" and syntax in message and words in message
    reason, message = refused(renamed[132:])
    assert reason == "unsupported" and syntax in message


def test_a_video_that_is_encapsulated_is_unsupported():
    ds = dataset(uid.MPEG4HP41)
    ds.PixelData = encapsulate([os.urandom(200)])
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    assert refused(stream.getvalue())[0] == "unsupported"


@pytest.mark.parametrize(
    "name, words",
    [
        ("reportsi.dcm", "Basic Text SR Storage"),
        ("rtplan.dcm", "RT Plan Storage"),
        ("test-SR.dcm", "SR Storage"),
        ("DICOMDIR", "Media Storage Directory"),
    ],
)
def test_objects_without_pixels_are_named(name, words):
    path = get_testdata_file(name)
    assert path is not None
    with open(path, "rb") as file:
        data = file.read()
    reason, message = refused(data)
    assert reason == "no-pixels" and words in message


@pytest.mark.parametrize(
    "class_uid", [uid.EncapsulatedPDFStorage, uid.RTStructureSetStorage, "1.2.9"]
)
def test_classes_of_objects_without_pixels(class_uid):
    ds = dataset(uid.ExplicitVRLittleEndian)
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(ds, keyword)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = class_uid
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    for data in (stream.getvalue(), stream.getvalue()[132:]):
        reason, message = refused(data)
        assert reason == "no-pixels" and uid.UID(class_uid).name in message


def test_odd_cells_are_unsupported():
    ds = dataset(uid.ExplicitVRLittleEndian)
    ds.BitsAllocated = 12
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    assert refused(stream.getvalue())[0] == "unsupported"
