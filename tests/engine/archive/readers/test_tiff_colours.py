"""TIFF: colours, alpha, palettes, inks and channels, and what is refused."""

import io
import struct

import numpy as np
import pytest
import tifffile
from tiff_files import (
    COLUMNS,
    LIMITS,
    ROWS,
    check,
    colour,
    entries_of,
    expected,
    levels,
    pack,
    refused,
    tiff,
    write,
)

from medclipsam.engine.archive.readers.raster import read_raster_levels, read_raster_mask
from medclipsam.engine.errors import InputError


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha", "unspecified"])
def test_alpha(dtype, planar, kind):
    pixels = colour(dtype)
    full = 1.0 if dtype == "f4" else float(np.iinfo(dtype).max)
    share = np.where(COLUMNS < 9, 0.0, np.where(COLUMNS < 20, 0.5, 1.0))
    stored = np.concatenate([pixels, (share * full).astype(dtype)[..., None]], axis=-1)
    if planar == "separate":
        stored = np.moveaxis(stored, -1, 0)
    data = write(stored, photometric="rgb", planarconfig=planar, extrasamples=[kind])
    plain = expected(pixels)
    check(data, plain * share[..., None] if kind == "unassalpha" else plain)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_grey_and_alpha(dtype):
    share = np.where(COLUMNS < 9, 0, np.iinfo(dtype).max).astype(dtype)
    stored = np.stack([levels(dtype), share], axis=-1)
    data = write(
        stored, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"]
    )
    check(data, np.where(share > 0, expected(levels(dtype)), 0))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("codec", [None, "lzw", "packbits"])
def test_palettes_in_every_packing(bits, codec):
    count = 1 << bits
    table = np.random.default_rng(bits).integers(256, 1 << 16, (3, count), np.uint16)
    indices = ((ROWS * 3 + COLUMNS) % count).astype(np.uint8)
    if bits < 8:  # tifffile packs bits only where they are greys
        data = packed_palette(indices, table, bits)
    else:
        data = write(indices, photometric="palette", colormap=table, compression=codec)
    check(data, (table >> 8).T[indices])
    stored, _ = read_raster_levels(data, LIMITS)
    np.testing.assert_array_equal(stored[0], indices)
    mask, _ = read_raster_mask(data, LIMITS)
    np.testing.assert_array_equal(mask[0], indices != 0)


def packed_palette(indices: np.ndarray, table: np.ndarray, bits: int) -> bytes:
    body = pack(indices, bits)
    colours = [int(value) for value in table.reshape(-1)]
    return tiff([*entries_of(bits, 3, len(body)), (320, 3, colours)], body)


def test_palettes_of_eight_bits_and_of_the_other_byte_order():
    table = np.random.default_rng(9).integers(0, 256, (3, 16), np.uint16)
    indices = ((ROWS + COLUMNS) % 16).astype(np.uint8)
    body = pack(indices, 4)
    entries = [*entries_of(4, 3, len(body)), (320, 3, [int(v) for v in table.reshape(-1)])]
    check(tiff(entries, body), table.T[indices])
    check(tiff(entries, body, ">"), table.T[indices])


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_channels_are_frames_and_no_colours(dtype, planar, count):
    channels = np.stack([np.roll(levels(dtype), k, 0) for k in range(count)])
    stored = channels if planar == "separate" else np.moveaxis(channels, 0, -1)
    data = write(np.ascontiguousarray(stored), photometric="minisblack", planarconfig=planar)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        assert len(file.pages) == 1 and file.pages[0].samplesperpixel == count
    check(data, expected(channels))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"compression": "jpeg2000"}, "JPEG 2000"),
        ({"compression": "jpegxl"}, "JPEG XL"),
        ({"compression": "lerc"}, "LERC"),
        ({"compression": "png"}, "PNG"),
        ({"photometric": "cielab"}, "L*a*b*"),
        ({"photometric": "cfa"}, "camera"),
        ({"photometric": "logl"}, "Log L"),
    ],
)
def test_what_is_not_read_is_named(options, words):
    pixels = colour("u1") if options.get("photometric") == "cielab" else levels("u1")
    reason, message = refused(write(pixels, **options))
    assert reason == "unsupported" and words in message


def test_kinds_of_samples_that_are_not_read():
    assert refused(write(levels("f4").astype(np.complex64)))[0] == "unsupported"
    volume = write(np.stack([levels("u1")] * 16), volumetric=True, tile=(16, 16, 16))
    assert refused(volume) == (
        "unsupported",
        "expected flat TIFF pages, got volumes of 16 slices",
    )
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(levels("u1"), metadata=None)
        writer.write(levels("u2"), metadata=None)
    assert refused(stream.getvalue())[0] == "unsupported"


def test_samples_beside_colours():
    """One without a meaning is padding; more are channels, and RGB is not what they are."""
    channels = np.dstack([np.roll(levels("u1"), k, 0) for k in range(6)])
    for count in (2, 4, 5, 6):
        stored = np.ascontiguousarray(channels[..., :count])
        data = write(stored, photometric="minisblack", planarconfig="contig")
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            at = file.pages[0].tags["PhotometricInterpretation"].valueoffset
        data = data[:at] + struct.pack("<H", 2) + data[at + 2 :]  # RGB
        if count == 2:
            check(data, np.moveaxis(stored, -1, 0))
        elif count == 4:
            check(data, stored[..., :3])
        else:
            assert refused(data)[0] == "unsupported"


def test_cmyk():
    inks = np.dstack([levels("u1"), levels("u1")[::-1], levels("u1"), ROWS.astype(np.uint8)])
    data = write(inks, photometric="separated", planarconfig="contig", extrasamples=[])
    share = 255 - inks.astype(int)
    check(data, np.rint(share[..., :3] * share[..., 3:] / 255))


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_masks_of_white_is_zero_count_from_black(bits):
    mask = (ROWS + COLUMNS) % 5 == 0
    dtype = {1: bool, 8: "u1", 16: "u2"}[bits]
    top = {1: 1, 8: 255, 16: 65535}[bits]
    stored = np.where(mask, 0, top).astype(dtype)
    data = write(stored, photometric="miniswhite")
    found, _ = read_raster_mask(data, LIMITS)
    np.testing.assert_array_equal(found[0], mask)
    with pytest.raises(InputError, match="BlackIsZero"):
        read_raster_mask(write(levels("f4"), photometric="miniswhite"), LIMITS)
