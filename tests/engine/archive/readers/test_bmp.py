"""BMP in every packing: written byte by byte, OpenCV is the oracle."""

import struct

import cv2
import numpy as np
import pytest

from medclipsam.engine.archive.limits import Limits
from medclipsam.engine.archive.readers.raster import read_raster, read_raster_mask
from medclipsam.engine.errors import InputError

HEIGHT, WIDTH = 13, 19  # rows that need padding at every depth
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
FEWER_BITS = 7  # 5 and 6 bits are stretched to 8 in two ways
PALETTES = {
    "colours": lambda n: RNG.integers(0, 256, (n, 3)),
    "any greys": lambda n: np.repeat(RNG.integers(0, 256, (n, 1)), 3, 1),
    "rising": lambda n: np.repeat(np.arange(n)[:, None], 3, 1),
    "full range": lambda n: np.repeat(np.linspace(0, 255, n).astype(int)[:, None], 3, 1),
    "falling": lambda n: np.repeat(np.linspace(255, 0, n).astype(int)[:, None], 3, 1),
}


def bmp(bits: int, rows: list[bytes], palette=(), coding=0, masks=b"", header=40) -> bytes:
    body = b"".join(row + bytes(-len(row) % 4) for row in rows[::-1])
    colours = b"".join(bytes([b, g, r, 0]) for r, g, b in palette)
    start = 14 + header + len(colours) + (len(masks) if header == 40 else 0)
    head = struct.pack("<IiiHHIIiiII", header, WIDTH, HEIGHT, 1, bits, coding, len(body), 0, 0,
                       len(palette), 0)  # fmt: skip
    head += masks.ljust(header - 40, b"\0") if header > 40 else masks
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + head + colours + body


def packed(values: np.ndarray, bits: int) -> list[bytes]:
    single = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return [bytes(r) for r in np.packbits(single.reshape(HEIGHT, -1).astype(bool), axis=1)]


def check(data: bytes, wanted: np.ndarray | None = None, tolerance: int = 0) -> None:
    frames, _ = read_raster(data, Limits())
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.abs(frames[0].astype(int) - found).max() <= tolerance
    if wanted is not None:
        np.testing.assert_array_equal(frames[0], wanted)


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("name", PALETTES)
def test_palettes(bits, name):
    for count in {1 << bits, max(2, (1 << bits) // 2 + 1)}:
        table = PALETTES[name](count)
        indices = (ROWS * 3 + COLUMNS) % count
        data = bmp(bits, packed(indices, bits), table.tolist())
        check(data, table[indices])
        mask, _ = read_raster_mask(data, Limits())
        np.testing.assert_array_equal(mask[0], indices > 0)


def test_old_headers_and_runs():
    table = PALETTES["colours"](16)
    indices = (ROWS + COLUMNS) % 16
    body = b"".join(row + bytes(-len(row) % 4) for row in packed(indices, 4)[::-1])
    colours = b"".join(bytes([b, g, r]) for r, g, b in table.tolist())
    start = 14 + 12 + len(colours)
    head = struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, 4)
    old = b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + head + colours + body
    check(old, table[indices])
    runs = COLUMNS // 4
    rows = [b"".join(bytes([1, value]) for value in row) + b"\0\0" for row in runs.tolist()]
    table = PALETTES["colours"](256)
    stream = b"".join(rows[::-1]) + b"\0\1"
    data = bmp(8, [stream], table.tolist(), coding=1)
    check(data, table[runs])


def test_colours_of_every_depth():
    blue_first = COLOUR[..., ::-1]
    check(bmp(24, [row.tobytes() for row in blue_first]), COLOUR)
    for last in (0, 255):
        four = np.dstack([blue_first, np.full((HEIGHT, WIDTH), last, np.uint8)])
        check(bmp(32, [row.tobytes() for row in four]), COLOUR)
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    check(bmp(32, [row.tobytes() for row in four], coding=3, masks=masks, header=108), COLOUR)
    red, green, blue = (COLOUR[..., k].astype(np.uint16) for k in range(3))
    five = ((red >> 3) << 10 | (green >> 3) << 5 | blue >> 3).astype("<u2")
    check(bmp(16, [row.tobytes() for row in five]), tolerance=FEWER_BITS)
    six = ((red >> 3) << 11 | (green >> 2) << 5 | blue >> 3).astype("<u2")
    masks = struct.pack("<3I", 0xF800, 0x7E0, 0x1F)
    check(bmp(16, [row.tobytes() for row in six], coding=3, masks=masks), tolerance=FEWER_BITS)


def test_other_formats_inside_are_named():
    for coding, name in ((4, "JPEG"), (5, "PNG"), (11, "CMYK")):
        with pytest.raises(InputError, match=name) as caught:
            read_raster(bmp(24, [b"\xff\xd8\xff"], coding=coding), Limits())
        assert caught.value.reason == "unsupported"
    with pytest.raises(InputError, match="2 bits") as caught:
        read_raster(bmp(2, [bytes(8)] * HEIGHT, [(0, 0, 0)] * 4), Limits())
    assert caught.value.reason == "unsupported"
