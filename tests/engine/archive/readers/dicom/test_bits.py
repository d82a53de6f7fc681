"""Which bits of a DICOM cell are a value, whatever syntax they are stored in."""

import io

import numpy as np
import pydicom
import pytest
import SimpleITK
from dicoms.cells import (
    COLUMNS,
    GREY,
    NATIVE,
    ROUNDING,
    ROWS,
    SHOWN,
    SYNTAXES,
    VALUES,
    WINDOW,
    check,
    compress,
    dicom,
    robust,
    save,
    shown,
)
from pydicom import uid

from medclipsam.engine.archive.readers.codestream import read_frame

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")


def by_simpleitk(data: bytes, folder) -> np.ndarray:
    (folder / "a.dcm").write_bytes(data)
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(folder / "a.dcm")))[0]


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("overlay", [False, True], ids=["clean", "overlay"])
@pytest.mark.parametrize("high", [11, 13, 15])
def test_unused_bits_are_no_part_of_a_value(syntax, signed, overlay, high, tmp_path):
    """12 stored bits anywhere in 16; the others hold an overlay above and noise below."""
    values = VALUES.astype(np.int32) - (2048 if signed else 0)
    cells = (values & 0xFFF) << (high - 11)
    if overlay:
        above = ((ROWS < 10) * 0xFFFF << (high + 1)) & 0xFFFF
        cells |= above | (COLUMNS & ((1 << (high - 11)) - 1))
    center = 1500 - (2048 if signed else 0)
    data = dicom(
        cells.astype(np.uint16),
        syntax,
        HighBit=high,
        PixelRepresentation=int(signed),
        WindowCenter=center,
        WindowWidth=2000,
    )
    if syntax == NATIVE and high == 11:  # the oracle shifts no other place down
        np.testing.assert_array_equal(by_simpleitk(data, tmp_path), values)
    check(data, SHOWN)


@pytest.mark.parametrize("high", [11, 15])
@pytest.mark.parametrize("syntax", [uid.JPEG2000Lossless, uid.JPEGLosslessSV1])
def test_a_stream_of_stored_bits_alone(syntax, high):
    """An encoder that takes values for 12 bits leaves nothing to shift, whatever HighBit says."""
    frame = compress(VALUES, syntax, bits=12)
    header = read_frame(frame)
    assert header is not None and header.bits == 12
    check(dicom(VALUES, syntax, [frame], HighBit=high, **WINDOW), SHOWN)


@pytest.mark.parametrize("syntax", [NATIVE, uid.RLELossless, uid.JPEGLSLossless])
def test_eight_bits_with_fewer_stored(syntax):
    cells = (GREY // 4 | (ROWS % 2 << 7)).astype(np.uint8)
    data = dicom(cells, syntax, BitsStored=6, HighBit=5)
    check(data, robust(GREY // 4))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("vr", ["US", "SS"])
def test_padding_in_every_sign(first, vr):
    """-2000 signed, or 63536 where the element is unsigned: the same cells."""
    values = VALUES.astype(np.int16)
    values[:8] = -2000
    data = dicom(values, BitsStored=16, HighBit=15, PixelRepresentation=1)
    ds = pydicom.dcmread(io.BytesIO(data))
    ds.add_new("PixelPaddingValue", vr, 63536 if vr == "US" else -2000)
    if first:
        ds.add_new("PixelPaddingRangeLimit", vr, 63530 if vr == "US" else -2006)
    found = shown(save(ds))[0, ..., 0].astype(int)
    assert np.abs(found[8:] - robust(values[8:])).max() <= ROUNDING
    assert (found[:8] == 0).all()
