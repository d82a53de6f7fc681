"""DICOM pixels show the same in every transfer syntax, and GDCM stays in decode processes."""

import io
import subprocess
import sys

import numpy as np
import pydicom
import pytest
from dicoms.ramps import (
    COLUMNS,
    HEIGHT,
    LIMITS,
    LOSSLESS,
    NOISE,
    RAMP,
    ROWS,
    SAMPLES,
    WIDTH,
    compressed,
    dataset,
    refused,
    shown,
)
from pydicom import uid

from medclipsam.engine.archive.readers.codestream import read_frame
from medclipsam.engine.archive.readers.dicom.dicom import read_dicom
from medclipsam.engine.errors import BackendError, InputError

# pytest overrides the filter that the engine installs against pydicom's remarks.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")

LOSSY = 3  # mean grey levels between two JPEG colour decoders
REFUSALS = ("unreadable", "truncated", "constant", "unsupported", "crashed")


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize("kind", ["grey", "frames", "colour"])
def test_lossless_syntaxes_show_the_same(syntax, kind, tmp_path):
    rgb = np.stack([ROWS * 9, COLUMNS * 12, 255 - ROWS * 5], axis=-1).astype(np.uint8)
    pixels = {"grey": NOISE, "frames": np.stack([NOISE, RAMP]), "colour": rgb}[kind]
    plain = dataset(pixels, bits=8 if kind == "colour" else 12)
    data = compressed(plain, syntax, tmp_path)
    assert pydicom.dcmread(io.BytesIO(data)).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(shown(data), shown(plain))


def test_jpeg_lossless_is_decoded_in_decode_processes_only(tmp_path):
    with pytest.raises(BackendError, match=r"archive\.Decoders"):
        read_dicom(compressed(dataset(NOISE), uid.JPEGLosslessSV1, tmp_path), LIMITS)


def test_damaged_jpeg_lossless_streams_never_end_this_process(tmp_path):
    rng = np.random.default_rng(11)
    good = compressed(dataset(NOISE), uid.JPEGLosslessSV1, tmp_path)
    start = good.index(b"\xff\xd8")
    for _ in range(60):
        bad = bytearray(good)
        for at in rng.integers(start, start + 120, 3):
            bad[at] = rng.integers(256)
        try:
            shown(bytes(bad))
        except InputError as error:
            assert error.reason in REFUSALS


def test_a_j2k_stream_of_another_sign_than_the_header():
    # A sign correction in place, on pixels that must be writable for it.
    shown((SAMPLES / "J2K_pixelrep_mismatch.dcm").read_bytes())


def test_a_folder_called_dl_does_not_break_gdcm(tmp_path):
    (tmp_path / "dl").mkdir()
    (tmp_path / "x.dcm").write_bytes(compressed(dataset(NOISE), uid.JPEGLosslessSV1, tmp_path))
    program = (
        "from pathlib import Path; from medclipsam.engine.archive import read_image\n"
        "read_image(Path('x.dcm'))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


def test_gdcm_never_enters_this_process():
    """Loaded before OpenCV it corrupts the heap (``free(): invalid pointer``)."""
    program = """
import sys
from medclipsam.engine.archive import read_image
import medclipsam.engine.run.runner, medclipsam.train.demo, medclipsam.engine.cli.doctor
assert "gdcm" not in sys.modules
import cv2, numpy
for side in range(40):
    cv2.imencode(".png", numpy.full((200 + side, 250 - side), side, numpy.uint8))
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_jpeg_baseline_in_colour():
    frames = shown((SAMPLES / "SC_rgb_dcmtk_+eb+cy+np.dcm").read_bytes())
    plain = shown((SAMPLES / "SC_rgb_rle.dcm").read_bytes())
    assert np.abs(frames.astype(int) - plain).mean() <= LOSSY


def test_big_endian_and_implicit_files_show_the_same():
    little = shown((SAMPLES / "MR_small.dcm").read_bytes())
    for name in ("MR_small_bigendian", "MR_small_implicit", "MR_small_padded", "MR_small_RLE"):
        np.testing.assert_array_equal(shown((SAMPLES / f"{name}.dcm").read_bytes()), little)


@pytest.mark.parametrize("syntax", LOSSLESS[1:], ids=lambda syntax: syntax.keyword)
def test_a_compressed_frame_may_not_claim_another_size(syntax, tmp_path):
    ds = pydicom.dcmread(io.BytesIO(compressed(dataset(NOISE), syntax, tmp_path)))
    ds.Rows += 1
    reason, message = refused(ds)
    assert reason == "unreadable" and "25 × 20" in message and "24 × 20" in message


def test_a_stream_that_is_cut_off_inside_a_whole_file(tmp_path):
    ds = pydicom.dcmread(io.BytesIO(compressed(dataset(NOISE), uid.JPEGLosslessSV1, tmp_path)))
    (stream,) = pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1)
    frame = read_frame(stream)
    assert frame is not None and (frame.rows, frame.columns) == (HEIGHT, WIDTH)
    ds.PixelData = pydicom.encaps.encapsulate([stream[: len(stream) // 2]])
    assert refused(ds)[0] == "truncated"
    ds.NumberOfFrames = 2
    ds.PixelData = pydicom.encaps.encapsulate([stream])
    assert refused(ds)[0] == "truncated"


def test_syntaxes_without_a_decoder_name_what_to_install():
    ds = dataset(NOISE)
    ds.compress(uid.RLELossless)
    ds.file_meta.TransferSyntaxUID = uid.MPEG2MPML
    reason, message = refused(ds)
    assert reason == "unsupported" and "MPEG2" in message
    reason, message = refused((SAMPLES / "JPGExtended.dcm").read_bytes())
    assert reason == "unsupported" and "pylibjpeg-libjpeg" in message
