"""Which bytes are a DICOM frame, where its stream ends, and when it is cut off."""

import io

import imagecodecs
import numpy as np
import pytest
from dicoms.cells import (
    GREY,
    HEIGHT,
    SHOWN,
    SYNTAXES,
    VALUES,
    WIDTH,
    WINDOW,
    check,
    compress,
    dicom,
    refused,
    shown,
)
from PIL import Image as PillowImage
from pydicom import uid

from medclipsam.engine.archive.readers.codestream import CODINGS, find_end, read_frame
from medclipsam.engine.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")

TRAILERS = {
    "zeros": bytes(600),
    "end marks": b"\xff\xd9" * 100,
    "text": b"nothing of this belongs to the picture. " * 8,
    "a mark alone": b"\xff",
}


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize("name", TRAILERS)
def test_bytes_behind_a_frame_change_nothing(syntax, name):
    packed = uid.UID(syntax).is_encapsulated
    order = ">u2" if syntax == uid.ExplicitVRBigEndian else "<u2"
    frame = compress(VALUES, syntax) if packed else VALUES.astype(order).tobytes()
    check(dicom(VALUES, syntax, [frame + TRAILERS[name]], **WINDOW), SHOWN)
    if packed:
        two = [frame + TRAILERS[name]] * 2
        data = dicom(np.stack([VALUES] * 2), syntax, two, **WINDOW)
        assert len(shown(data)) == 2
        check(data, SHOWN)


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.keyword)
def test_more_frames_than_declared_are_left_out(syntax):
    packed = uid.UID(syntax).is_encapsulated
    order = ">u2" if syntax == uid.ExplicitVRBigEndian else "<u2"
    frame = compress(VALUES, syntax) if packed else VALUES.astype(order).tobytes()
    data = dicom(VALUES, syntax, [frame] * 3, **WINDOW)
    assert len(shown(data)) == 1
    check(data, SHOWN)


@pytest.mark.parametrize("syntax", SYNTAXES[3:], ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize("trailer", [b"", bytes(300), b"\xff\xd9" * 50], ids=["", "zeros", "marks"])
def test_a_frame_that_is_cut_off_is_noticed(syntax, trailer):
    frame = compress(VALUES, syntax)
    for tenth in range(1, 10):
        if trailer and syntax == uid.RLELossless:  # which has no end mark: they are its runs
            continue
        data = dicom(VALUES, syntax, [frame[: len(frame) * tenth // 10] + trailer], **WINDOW)
        if b"\xff\xd9" not in trailer:
            assert refused(data)[0] in ("truncated", "unreadable")
            continue
        try:  # an end mark means the same wherever it comes from
            shown(data)
        except InputError as error:
            assert error.reason in ("truncated", "unreadable", "constant")


def test_runs_of_a_wrong_length(capfd):
    """At a run of which nothing follows pylibjpeg-rle panics, which is no Exception of Python."""
    frame = compress(VALUES, uid.RLELossless)
    for at in range(64, len(frame), 3):
        damaged = frame[:at] + bytes([frame[at] ^ 0x80]) + frame[at + 1 :]
        try:
            shown(dicom(VALUES, uid.RLELossless, [damaged], **WINDOW))
        except InputError as error:
            assert error.reason in ("truncated", "unreadable")
    assert "panicked" in capfd.readouterr().err, "no damage of the kind: choose other places"


def tiled_j2k() -> bytes:
    stream = io.BytesIO()
    PillowImage.fromarray(GREY).save(stream, "JPEG2000", no_jp2=True, tile_size=(16, 16))
    return stream.getvalue()


def codestreams() -> dict[str, bytes]:
    jpeg = imagecodecs.jpeg8_encode
    return {
        "baseline": jpeg(GREY, level=90),
        "colour": jpeg(np.dstack([GREY] * 3), level=90),
        "lossless": imagecodecs.ljpeg_encode(VALUES, bitspersample=12),
        "jpeg-ls": imagecodecs.jpegls_encode(VALUES),
        "j2k": imagecodecs.jpeg2k_encode(VALUES, level=0, codecformat="j2k"),
        "jp2": imagecodecs.jpeg2k_encode(VALUES, level=0, codecformat="jp2"),
        "tiles": tiled_j2k(),
    }


@pytest.mark.parametrize("name", codestreams())
def test_ends_of_streams(name):
    stream = codestreams()[name]
    frame = read_frame(stream)
    assert frame is not None and (frame.rows, frame.columns) == (HEIGHT, WIDTH)
    assert frame.coding in CODINGS
    assert find_end(stream) == len(stream)
    for trailer in TRAILERS.values():
        assert find_end(stream + trailer) == len(stream)
    assert all(find_end(stream[:cut]) is None for cut in range(len(stream)))


def test_an_end_mark_inside_a_preview_is_not_the_end():
    stream = codestreams()["baseline"]
    preview = b"\xff\xe1" + (len(stream) + 2).to_bytes(2, "big") + stream
    whole = stream[:2] + preview + stream[2:]
    assert find_end(whole) == len(whole)
    assert find_end(whole[: len(preview) + 40]) is None
    frame = read_frame(whole)
    assert frame is not None and frame.rows == HEIGHT
