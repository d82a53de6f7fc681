"""DICOM files that are cut off, oversized, garbage or without pixels are refused by reason."""

import io
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicoms.ramps import (
    LIMITS,
    LOSSLESS,
    NOISE,
    RAMP,
    SAMPLES,
    compressed,
    dataset,
    refused,
    shown,
    to_bytes,
)
from pydicom import uid
from reading import read_dicom_anywhere

from medclipsam.engine.archive.limits import Limits
from medclipsam.engine.errors import InputError

# pytest overrides the filter that the engine installs against pydicom's remarks.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")


def test_objects_without_pixels():
    ds = dataset(RAMP)
    del ds.PixelData
    assert refused(ds)[0] == "no-pixels"


def test_sizes_are_checked_from_the_header():
    assert refused(dataset(RAMP, Rows=0))[0] == "empty"
    assert refused(dataset(RAMP, Rows=65000, Columns=65000))[0] == "too-large"
    assert refused(dataset(RAMP, NumberOfFrames=10**6))[0] == "too-large"
    assert refused(dataset(RAMP, NumberOfFrames=2))[0] == "truncated"
    assert refused(dataset(RAMP, SamplesPerPixel=4))[0] == "unsupported"
    assert refused(dataset(np.full_like(RAMP, 7)))[0] == "constant"


def variants(folder: Path) -> dict[str, bytes]:
    found = {"plain": to_bytes(dataset(NOISE))}
    for syntax in LOSSLESS:
        found[syntax.keyword] = compressed(dataset(np.stack([NOISE, RAMP])), syntax, folder)
    ds = dataset(NOISE)
    ds.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    found["deflated"] = to_bytes(ds)
    found["baseline"] = (SAMPLES / "SC_rgb_dcmtk_+eb+cy+np.dcm").read_bytes()
    return found


def test_files_cut_off_anywhere_are_refused_or_whole(tmp_path):
    for name, data in variants(tmp_path).items():
        whole = shown(data)
        cuts = {len(data) * tenth // 10 for tenth in range(10)}
        cuts |= {len(data) - k for k in (1, 2, 3, 7, 8, 9, 10, 20)} | set(range(132, 900, 37))
        reasons = []
        for cut in sorted(cuts):
            try:
                frames, _ = read_dicom_anywhere(data[:cut], LIMITS)
            except InputError as error:
                reasons.append(error.reason)
            else:
                np.testing.assert_array_equal(frames, whole, err_msg=f"{name} cut at {cut}")
        assert "truncated" in reasons, name


def test_garbage_after_the_magic_bytes():
    rng = np.random.default_rng(5)
    for size in (0, 10, 1000):
        for _ in range(5):
            refused(bytes(128) + b"DICM" + rng.bytes(size))
    head = to_bytes(dataset(NOISE))[:500]
    for _ in range(5):
        refused(head + rng.bytes(300))


def test_a_deflate_bomb_stops_at_the_limit():
    data = to_bytes(dataset(NOISE))
    ds = dataset(NOISE)
    ds.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    deflated = to_bytes(ds)
    np.testing.assert_array_equal(shown(deflated), shown(data))
    body = 132 + 12 + pydicom.dcmread(io.BytesIO(deflated)).file_meta.FileMetaInformationGroupLength
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = compressor.compress(bytes(1 << 24)) + compressor.flush()
    assert refused(deflated[:body] + bomb, Limits(max_bytes=1 << 20))[0] == "too-large"


def test_no_patient_is_ever_parsed(monkeypatch):
    seen = []
    parse = pydicom.dcmread

    def watch(*args, **kwargs):
        seen.append(parse(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr("medclipsam.engine.archive.readers.dicom.dicom.dcmread", watch)
    shown(dataset(RAMP))
    assert "Rows" in seen[0] and "PatientName" not in seen[0]
