"""TIFF: damage is noticed, bombs are refused from the header."""

import io
import logging
import struct
import zlib

import numpy as np
import pytest
import tifffile
from tiff_files import HEIGHT, WIDTH, entries_of, levels, refused, shown, tiff, write

from medclipsam.engine.errors import InputError


@pytest.mark.parametrize("codec", [None, "lzw", "zlib", "packbits", "jpeg", "zstd", "lzma"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_damage_is_noticed(codec, tile):
    noise = np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH), np.uint8)
    data = write(noise, compression=codec, tile=tile, rowsperstrip=None if tile else 9)
    whole = shown(data)
    for tenth in range(1, 10):
        cut = data[: len(data) * tenth // 10]
        try:
            np.testing.assert_array_equal(shown(cut), whole)
        except InputError as error:
            assert error.reason in ("truncated", "unreadable", "empty")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        offset, count = file.pages[0].dataoffsets[1], file.pages[0].databytecounts[1]
    rng = np.random.default_rng(3)
    if codec in ("lzw", "zlib", "lzma"):  # zstd stores noise as it is, without a checksum
        middle = offset + count // 3
        bad = data[:middle] + rng.bytes(count // 3) + data[middle + count // 3 :]
        assert refused(bad)[0] in ("truncated", "unreadable")


def test_a_segment_without_data_is_noticed():
    data = bytearray(write(levels("u1"), rowsperstrip=9, compression="zlib"))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        tag = file.pages[0].tags["StripByteCounts"]
    data[tag.valueoffset : tag.valueoffset + 4] = bytes(4)
    assert refused(bytes(data))[0] == "truncated"


def test_bombs_are_refused_from_the_header():
    many = write(levels("u1"), description="ImageJ=1\nimages=1000000000\n")
    assert refused(many)[0] == "too-large"
    for width, height in ((65_000, 65_000), (1 << 31, 1)):
        entries = [*entries_of(8, 1, 10)]
        entries[0], entries[1] = (256, 4, [width]), (257, 4, [height])
        assert refused(tiff(entries, bytes(10)))[0] == "too-large"
    tall = [*entries_of(8, 1, 10), (322, 4, [1 << 30]), (323, 4, [1 << 30])]
    tall += [(324, 4, [8]), (325, 4, [10])]
    tall[3] = (259, 3, [8])
    assert refused(tiff(tall, bytes(10)))[0] == "too-large"


@pytest.mark.parametrize("name", ["BitsPerSample", "StripOffsets", "ExtraSamples"])
def test_a_tag_outside_the_file_is_noticed(name):
    """tifffile goes on without it: one bit a sample, no offsets, no alpha."""
    rgba = np.dstack([levels("u1")] * 5)
    data = bytearray(
        write(
            rgba, photometric="rgb", rowsperstrip=9, extrasamples=["unassalpha", 0], bigtiff=False
        )
    )
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        tag = file.pages[0].tags[name]
    struct.pack_into("<I", data, tag.offset + 4, 900)
    struct.pack_into("<I", data, tag.offset + 8, len(data) - 8)
    reason, message = refused(bytes(data))
    assert reason == "truncated" and str(tag.code) in message


def test_a_checksum_of_deflate_is_verified():
    data = write(levels("u1"), compression="zlib")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        end = file.pages[0].dataoffsets[0] + file.pages[0].databytecounts[0]
    data = data[: end - 1] + bytes([data[end - 1] ^ 1]) + data[end:]
    assert refused(data)[0] == "unreadable"


def test_a_jpeg_larger_than_its_strip():
    large = np.tile(levels("u1"), (2, 2))
    data = write(large, compression="jpeg", rowsperstrip=len(large))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        start, count = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    body = data[start : start + count]
    entries = [(259, 3, [7]) if e[0] == 259 else e for e in entries_of(8, 1, len(body))]
    reason, message = refused(tiff(entries, body))
    assert reason == "unreadable" and "rows=90" in message


def test_a_segment_that_inflates_to_more_than_its_size():
    body = zlib.compress(bytes(1 << 26), 9)
    entries = [(259, 3, [8]) if e[0] == 259 else e for e in entries_of(8, 1, len(body))]
    assert refused(tiff(entries, body))[0] == "unreadable"


def test_nothing_is_logged(caplog):
    data = write(levels("u1"), rowsperstrip=9)
    with caplog.at_level(logging.DEBUG):
        for cut in (12, 100, len(data) // 2):
            refused(data[:cut])
    assert not caplog.records, "remarks may quote the file"
