"""Palettes and lookup tables of DICOM in every packing, and numbers that make no sense."""

import io
import itertools

import numpy as np
import pydicom
import pytest
from dicoms.cells import (
    GREY,
    ROUNDING,
    SHOWN,
    VALUES,
    WINDOW,
    check,
    dataset,
    dicom,
    refused,
    robust,
    save,
    shown,
    windowed,
)
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")


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
