"""DICOM pixels: which bits are a value, which bytes a frame, which entries a table.

Values are known before they are written. imagecodecs compresses them; pydicom and SimpleITK
read them back where they can.
"""

import io
import itertools

import imagecodecs
import numpy as np
import pydicom
import pytest
import SimpleITK
from PIL import Image as PillowImage
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, get_encoder
from reading import read_dicom_anywhere

from medclipsam.engine.archive.limits import Limits
from medclipsam.engine.archive.readers.codestream import CODINGS, find_end, read_frame
from medclipsam.engine.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")

ROUNDING = 1
HEIGHT, WIDTH = 23, 30
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
VALUES = (ROWS * 150 + COLUMNS * 19).astype(np.uint16)  # 12 bits
GREY = (ROWS * 7 + COLUMNS * 3).astype(np.uint8)
WINDOW = {"WindowCenter": 1500, "WindowWidth": 2000}
NATIVE = uid.ExplicitVRLittleEndian
SYNTAXES = (
    NATIVE,
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.RLELossless,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
    uid.JPEGLosslessSV1,
)


def windowed(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1 in float64."""
    share = (values.astype(float) - (center - 0.5)) / (width - 1) + 0.5
    return np.rint(np.clip(share, 0, 1) * 255)


def robust(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, (0.5, 99.5))
    return np.rint(np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255)


SHOWN = windowed(VALUES, 1500, 2000)


def compress(cells: np.ndarray, syntax: str, bits: int = 16) -> bytes:
    """One frame of uint8 or uint16 cells in a stream of ``bits`` bits."""
    if syntax == uid.RLELossless:
        found = get_encoder(syntax).encode(
            cells.tobytes(), rows=cells.shape[0], columns=cells.shape[1], number_of_frames=1,
            samples_per_pixel=1, bits_allocated=8 * cells.itemsize,
            bits_stored=8 * cells.itemsize, pixel_representation=0,
            photometric_interpretation="MONOCHROME2", encoding_plugin="pydicom",
        )  # fmt: skip
        return bytes(found)
    if syntax == uid.JPEGLSLossless:
        return imagecodecs.jpegls_encode(cells)
    if syntax == uid.JPEG2000Lossless:
        return imagecodecs.jpeg2k_encode(
            cells, level=0, codecformat="j2k", reversible=True, bitspersample=bits
        )
    return imagecodecs.ljpeg_encode(cells, bitspersample=bits)


def save(ds: Dataset) -> bytes:
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def dicom(*args, **elements) -> bytes:
    return save(dataset(*args, **elements))


def dataset(
    cells: np.ndarray, syntax: str = NATIVE, frames: list[bytes] | None = None, **elements
) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = uid.SecondaryCaptureImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.3"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = cells.shape[-2:]
    if cells.ndim == 3:
        ds.NumberOfFrames = len(cells)
    ds.BitsAllocated = 8 * cells.itemsize
    ds.BitsStored = 12 if cells.itemsize == 2 else 8
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, 0
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    if uid.UID(syntax).is_encapsulated:
        pages = cells if cells.ndim == 3 else cells[None]
        ds.PixelData = encapsulate(frames or [compress(page, syntax) for page in pages])
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    else:
        big = syntax == uid.ExplicitVRBigEndian
        ordered = cells.astype(cells.dtype.newbyteorder(">" if big else "<"))
        ds.PixelData = b"".join(frames) if frames else ordered.tobytes()
        ds.PixelData += b"\0" * (len(ds.PixelData) % 2)
        ds["PixelData"].VR = "OW" if cells.itemsize == 2 else "OB"
    return ds


def shown(data: bytes) -> np.ndarray:
    frames, _ = read_dicom_anywhere(data, Limits())
    return frames


def refused(data: bytes) -> tuple[str, str]:
    with pytest.raises(InputError) as caught:
        read_dicom_anywhere(data, Limits())
    return caught.value.reason, str(caught.value)


def check(data: bytes, wanted: np.ndarray) -> None:
    found = shown(data)[0, ..., 0].astype(int)
    assert np.abs(found - wanted).max() <= ROUNDING


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


# Tables.


def palette_dicom(
    cells: np.ndarray, tables: np.ndarray, bits: int, first: int = 0, size: int = 2,
    big: bool = False, **elements
) -> bytes:  # fmt: skip
    """(3, N) tables with entries of ``size`` bytes; the descriptor says ``bits``."""
    ds = dataset(cells, **elements)
    ds.PhotometricInterpretation = "PALETTE COLOR"
    for colour, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        name = f"{colour}PaletteColorLookupTable"
        descriptor = [tables.shape[1] % 65536, first & 0xFFFF, bits]
        ds.add_new(f"{name}Descriptor", "US", descriptor)
        data = table.astype({1: "u1", 2: ">u2" if big else "<u2"}[size]).tobytes()
        data += b"\0" * (len(data) % 2)
        if big and size == 1:
            data = np.frombuffer(data, "<u2").byteswap().tobytes()
        ds.add_new(f"{name}Data", "OW", data)
    if big:
        ds.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian
        ds.PixelData = cells.astype(cells.dtype.newbyteorder(">")).tobytes()
        ds["PixelData"].VR = "OW"
        if cells.itemsize == 1:
            even = cells.tobytes() + b"\0" * (cells.size % 2)
            ds.PixelData = np.frombuffer(even, "<u2").byteswap().tobytes()
    return save(ds)


def colours(count: int, top: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, top + 1, (3, count))


def check_palette(data: bytes, wanted: np.ndarray) -> None:
    np.testing.assert_array_equal(shown(data)[0], wanted)


@pytest.mark.parametrize("count", [7, 200, 256])
@pytest.mark.parametrize("big", [False, True], ids=["little", "big"])
@pytest.mark.parametrize(
    "said, size, scale, kept",
    [(8, 1, 1, 0), (8, 2, 1, 0), (8, 2, 257, 8), (16, 2, 257, 8), (16, 1, 1, 0), (16, 2, 1, 0)],
    ids=["8 packed", "8 in 16", "16 called 8", "16", "8 packed called 16", "8 in 16 called 16"],
)
def test_palettes_in_every_packing(count, big, said, size, scale, kept):
    tables = colours(count, 255)
    indices = (GREY.astype(int) % count).astype(np.uint8)
    data = palette_dicom(indices, tables * scale, said, size=size, big=big)
    check_palette(data, (tables * scale >> kept).T[indices])


@pytest.mark.parametrize("first", [-40, 0, 30])
@pytest.mark.parametrize("size", [1, 2])
def test_palettes_that_begin_elsewhere(first, size):
    """Values below and above the table take its ends."""
    tables = colours(64, 255)
    values = (VALUES % 200).astype(np.int16) - 80
    signed = first < 0
    cells = values if signed else values.clip(0).astype(np.uint16)
    data = palette_dicom(
        cells.astype(np.int16 if signed else np.uint16), tables, 8, first, size,
        BitsStored=16, HighBit=15, PixelRepresentation=int(signed),
    )  # fmt: skip
    check_palette(data, tables.T[np.clip(cells.astype(int) - first, 0, 63)])


def test_palettes_of_all_16_bits_and_of_compressed_indices():
    tables = np.stack([np.arange(65536), np.arange(65536)[::-1], np.arange(65536) // 2])
    data = palette_dicom(VALUES * 16, tables, 16, BitsStored=16, HighBit=15)
    check_palette(data, (tables >> 8).T[VALUES.astype(int) * 16])
    ds = pydicom.dcmread(io.BytesIO(data))
    np.testing.assert_array_equal(apply_color_lut(ds.pixel_array, ds) >> 8, shown(data)[0])
    few = palette_dicom(GREY % 50, colours(50, 255), 8, size=1)
    ds = pydicom.dcmread(io.BytesIO(few))
    ds.compress(uid.RLELossless)
    check_palette(save(ds), colours(50, 255).T[GREY % 50])


@pytest.mark.parametrize("bits", [8, 16])
def test_segmented_palettes(bits):
    """Discrete, linear and indirect segments; pydicom expands them as well."""
    unit, top = ("u1", 255) if bits == 8 else ("<u2", 65535)

    def segments(k: int) -> tuple[bytes, list[int]]:
        start = [k, top // 2, top // 3]
        line = list(np.rint(np.linspace(start[-1], top - k, 61)[1:]).astype(int))
        first = np.array([0, 3, *start, 1, 60, top - k], unit)
        place = np.array([0], "<u4").view(unit)
        again = np.array([2, 2, *place], unit)
        return np.concatenate([first, again]).tobytes(), (start + line) * 2

    ds = pydicom.dcmread(io.BytesIO(dicom(GREY)))
    ds.PhotometricInterpretation = "PALETTE COLOR"
    tables = []
    for k, colour in enumerate(("Red", "Green", "Blue")):
        data, entries = segments(k)
        tables.append(entries)
        ds.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [126, 0, bits])
        ds.add_new(f"Segmented{colour}PaletteColorLookupTableData", "OW", data)
    table = np.array(tables) >> (bits - 8)
    check_palette(save(ds), table.T[np.clip(GREY, 0, 125)])
    expanded = apply_color_lut(np.clip(GREY, 0, 125), ds) >> (bits - 8)
    assert np.abs(expanded.astype(int) - shown(save(ds))[0]).max() <= ROUNDING


def test_palettes_that_are_missing_or_too_short():
    reason, message = refused(dicom(GREY, PhotometricInterpretation="PALETTE COLOR"))
    assert reason == "unsupported" and "palette" in message
    ds = pydicom.dcmread(io.BytesIO(palette_dicom(GREY, colours(256, 255), 8, size=1)))
    ds.GreenPaletteColorLookupTableData = bytes(100)
    assert refused(save(ds))[0] == "unreadable"


def item(count: int, first: int, entries: object, vr: str = "US", bits: int = 12) -> Dataset:
    found = Dataset()
    found.add_new("LUTDescriptor", "US", [count % 65536, first & 0xFFFF, bits])
    found.add_new("LUTData", vr, entries)
    return found


def broken_tables() -> dict[str, Dataset]:
    nothing, no_data, no_descriptor = Dataset(), Dataset(), Dataset()
    no_data.LUTDescriptor = [4096, 0, 12]
    no_descriptor.add_new("LUTData", "US", list(range(4096)))
    empty = item(4096, 0, None, "OW")
    return {
        "nothing": nothing,
        "no data": no_data,
        "no descriptor": no_descriptor,
        "empty": empty,
        "short": item(4096, 0, list(range(4000))),
        "short, packed": item(4096, 0, bytes(4000), "OW", 8),
        "all zero": item(4096, 0, [0] * 4096),
    }


@pytest.mark.parametrize("name", broken_tables())
def test_broken_tables_beside_what_can_be_used(name):
    table = broken_tables()[name]
    check(dicom(VALUES, VOILUTSequence=[table], **WINDOW), SHOWN)
    check(dicom(VALUES, VOILUTSequence=[table]), robust(VALUES))
    line = {"RescaleSlope": 2, "RescaleIntercept": -100}
    data = dicom(VALUES, ModalityLUTSequence=[table], **line, **WINDOW)
    check(data, windowed(VALUES * 2.0 - 100, 1500, 2000))


def test_a_short_modality_table_alone_is_damage():
    assert refused(dicom(VALUES, ModalityLUTSequence=[broken_tables()["short"]]))[0] == "unreadable"
    check(dicom(VALUES, ModalityLUTSequence=[broken_tables()["empty"]]), robust(VALUES))


@pytest.mark.parametrize("first", [-1024, 0, 700])
@pytest.mark.parametrize("packing", ["numbers", "words", "bytes", "two in a number"])
def test_tables_in_every_packing(first, packing):
    count = 2001
    table = np.rint(255 * (np.arange(count) / (count - 1)) ** 2).astype(int)
    data = {
        "numbers": (table.tolist(), "US"),
        "words": (table.astype("<u2").tobytes(), "OW"),
        "bytes": (table.astype("u1").tobytes() + b"\0", "OW"),
        "two in a number": (
            np.frombuffer(table.astype("u1").tobytes() + b"\0", "<u2").tolist(),
            "US",
        ),
    }[packing]
    intercept = -1024 if first < 0 else 0
    ds = dicom(
        VALUES,
        VOILUTSequence=[item(count, first, *data, bits=8)],
        RescaleSlope=1,
        RescaleIntercept=intercept,
    )
    index = np.clip(VALUES.astype(int) + intercept - first, 0, count - 1)
    check(ds, table[index])


ODD_NUMBERS = ("0.00", "NaN", "inf", "-inf", "oops", "1e-300", "  ")


@pytest.mark.parametrize(
    "name, text", [*itertools.product(("RescaleSlope", "WindowWidth"), ODD_NUMBERS)]
)
def test_odd_numbers_do_not_hide_the_picture(name, text):
    elements = {"RescaleSlope": "7.7777", "RescaleIntercept": "-5", **WINDOW}
    elements[name] = "7.777777"
    data = dicom(VALUES, **elements).replace(b"7.777777", text.encode().ljust(8))
    found = shown(data)[0, ..., 0]
    assert found.min() == 0 and found.max() == 255 and len(np.unique(found)) > 50


def test_a_negative_slope_inverts_and_a_decimal_comma_counts():
    check(dicom(VALUES, RescaleSlope=-0.5, RescaleIntercept=9), robust(-VALUES.astype(int)))
    data = dicom(VALUES, WindowCenter="1500.25", WindowWidth="2000.50")
    wanted = windowed(VALUES, 1500.25, 2000.5)
    check(data, wanted)
    check(data.replace(b"1500.25", b"1500,25").replace(b"2000.50", b"2000,50"), wanted)
