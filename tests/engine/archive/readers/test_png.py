"""PNG at every depth and colour type: written here byte by byte, read back by OpenCV as well."""

import itertools
import struct
import zlib

import cv2
import numpy as np
import pytest

from medclipsam.engine.archive.limits import Limits
from medclipsam.engine.archive.readers.raster import (
    read_raster,
    read_raster_levels,
    read_raster_mask,
)
from medclipsam.engine.errors import InputError

LIMITS = Limits()
HEIGHT, WIDTH = 23, 18
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
MAGIC = b"\x89PNG\r\n\x1a\n"
GREY, RGB, INDEXED, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, INDEXED: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
DEPTHS = {
    GREY: (1, 2, 4, 8, 16),
    RGB: (8, 16),
    INDEXED: (1, 2, 4, 8),
    GREY_ALPHA: (8, 16),
    RGB_ALPHA: (8, 16),
}
KINDS = [(colour, depth) for colour, depths in DEPTHS.items() for depth in depths]
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
         (1, 0, 2, 1))  # fmt: skip
ROUNDING = 1


def chunk(name: bytes, content: bytes, damaged: bool = False) -> bytes:
    checksum = zlib.crc32(name + content) ^ damaged
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def samples(colour: int, depth: int) -> np.ndarray:
    """(H, W, C) of every kind; alpha is clear, half and full, and greys use all bits."""
    top = (1 << depth) - 1
    rng = np.random.default_rng(depth)
    noise = rng.integers(0, 60, (HEIGHT, WIDTH, CHANNELS[colour]))
    ramp = ((ROWS * 7 + COLUMNS * 5) / 240 * top * 0.8)[..., None]
    values = np.clip(np.rint(ramp + noise * top / 300), 0, top).astype(np.int64)
    if colour in (GREY_ALPHA, RGB_ALPHA):
        values[..., -1] = np.where(COLUMNS < 4, 0, np.where(COLUMNS < 9, top // 2, top))
    return values


def scanlines(values: np.ndarray, depth: int) -> bytes:
    """Rows with a filter type before each: all five types in turn where pixels fill bytes."""
    bits = (values.reshape(len(values), -1)[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    rows = np.packbits(bits.reshape(len(values), -1).astype(bool), axis=1).astype(np.int64)
    step = max(1, values.shape[-1] * depth // 8)
    out, above = b"", np.zeros(rows.shape[1], np.int64)
    for number, row in enumerate(rows):
        left = np.concatenate([np.zeros(step, np.int64), row[:-step]])
        corner = np.concatenate([np.zeros(step, np.int64), above[:-step]])
        guess = left + above - corner
        near = np.stack([abs(guess - left), abs(guess - above), abs(guess - corner)]).argmin(0)
        paeth = np.choose(near, [left, above, corner])
        kind = number % 5
        taken = (0, left, above, (left + above) // 2, paeth)[kind]
        out += bytes([kind]) + ((row - taken) % 256).astype(np.uint8).tobytes()
        above = row
    return out


def png(
    colour: int,
    depth: int,
    values: np.ndarray,
    *before: bytes,
    after: tuple[bytes, ...] = (),
    interlaced: bool = False,
) -> bytes:
    """A PNG with more chunks before and after its pixels."""
    header = struct.pack(">2I5B", WIDTH, HEIGHT, depth, colour, 0, 0, interlaced)
    parts = [values]
    if interlaced:
        parts = [values[top::down, left::right] for top, left, down, right in ADAM7]
    lines = b"".join(scanlines(part, depth) for part in parts if part.size)
    body = chunk(b"IHDR", header) + b"".join(before) + chunk(b"IDAT", zlib.compress(lines))
    return MAGIC + body + b"".join(after) + chunk(b"IEND", b"")


def palette(depth: int) -> tuple[bytes, np.ndarray]:
    table = np.random.default_rng(1).integers(0, 256, (1 << depth, 3), np.uint8)
    return chunk(b"PLTE", table.tobytes()), table


def made(colour: int, depth: int, *more: bytes, **options) -> bytes:
    first = [palette(depth)[0]] if colour == INDEXED else []
    return png(colour, depth, samples(colour, depth), *first, *more, **options)


def displayed(colour: int, depth: int) -> np.ndarray:
    """(H, W) or (H, W, 3) in 0–255: 8 bits as they are, 16 bits through the percentiles."""
    values, top = samples(colour, depth), (1 << depth) - 1
    if colour == INDEXED:
        return palette(depth)[1][values[..., 0]]
    alpha = values[..., -1:] / top if colour in (GREY_ALPHA, RGB_ALPHA) else 1.0
    plain = values[..., : 3 if colour in (RGB, RGB_ALPHA) else 1]
    if depth == 16:
        low, high = np.percentile(plain, (0.5, 99.5))
        plain = np.clip((plain - low) / (high - low), 0, 1) * 255
    else:
        plain = plain * 255 // top
    shown = np.rint(plain) * alpha
    return shown if shown.shape[-1] == 3 else shown[..., 0]


def check(data: bytes, wanted: np.ndarray) -> None:
    frames, _ = read_raster(data, LIMITS)
    wanted = wanted if wanted.ndim == 3 else np.dstack([wanted] * 3)
    assert np.abs(frames[0].astype(float) - wanted).max() <= ROUNDING


def refused(data: bytes) -> str:
    with pytest.raises(InputError) as caught:
        read_raster(data, LIMITS)
    return caught.value.reason


def by_opencv(data: bytes) -> np.ndarray:
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert found is not None
    return found


@pytest.mark.parametrize("interlaced", [False, True], ids=["rows", "interlaced"])
@pytest.mark.parametrize("colour, depth", KINDS)
def test_every_kind(colour, depth, interlaced):
    data = made(colour, depth, interlaced=interlaced)
    if depth >= 8 and colour in (GREY, RGB, RGB_ALPHA):  # the oracle's pixels, blue first
        order = {GREY: [0], RGB: [2, 1, 0], RGB_ALPHA: [2, 1, 0, 3]}[colour]
        found = by_opencv(data).reshape(HEIGHT, WIDTH, -1)
        np.testing.assert_array_equal(found[..., order], samples(colour, depth))
    check(data, displayed(colour, depth))


def test_deep_colours_are_not_cut_to_their_upper_bytes():
    dark = samples(RGB, 16) // 256  # all upper bytes are 0
    frames, _ = read_raster(png(RGB, 16, dark), LIMITS)
    assert frames.min() == 0 and frames.max() == 255 and len(np.unique(frames)) > 100
    stored, _ = read_raster_levels(png(RGB, 16, dark), LIMITS)
    assert stored.dtype == np.uint16
    np.testing.assert_array_equal(stored[0], dark)


@pytest.mark.parametrize("colour, depth", [k for k in KINDS if k[0] in (GREY, RGB, INDEXED)][1:])
def test_transparent_colours(colour, depth):
    values = samples(colour, depth)
    if colour == INDEXED:
        shares = np.random.default_rng(2).integers(0, 256, 1 << depth, np.uint8)
        alpha, content = shares[values[..., 0]], shares.tobytes()
    else:
        key = values[HEIGHT // 2, WIDTH // 2]
        alpha = np.where((values == key).all(-1), 0, 255)
        content = key.astype(">u2").tobytes()
    data = made(colour, depth, chunk(b"tRNS", content))
    wanted = displayed(colour, depth)
    share = alpha / 255
    check(data, wanted * (share[..., None] if wanted.ndim == 3 else share))
    mask, _ = read_raster_mask(data, LIMITS)
    stored = values.max(-1) > 0
    np.testing.assert_array_equal(mask[0], stored & (alpha > 0))


HARMLESS = {
    "gAMA": struct.pack(">I", 22_000),
    "cHRM": bytes(range(32)),
    "sRGB": b"\0",
    "iCCP": b"profile\0\0" + zlib.compress(b"no profile at all"),
    "pHYs": struct.pack(">2IB", 3, 5, 1),
    "tEXt": b"Comment\0text",
    "zTXt": b"Comment\0\0" + zlib.compress(b"text"),
    "tIME": bytes(7),
    "eXIf": b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\1\0\6\0\0\0\0\0\0",
    "sBIT": b"\5\5\5",
    "prVt": b"private",
    "acTL": struct.pack(">2I", 1, 0),
}


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("kind", [(GREY, 8), (RGB, 16), (RGB_ALPHA, 8)])
def test_remarks_change_nothing_even_damaged(name, kind):
    plain, _ = read_raster(made(*kind), LIMITS)
    for content, damaged in itertools.product((HARMLESS[name], b"", b"\xff" * 50), (False, True)):
        extra = chunk(name.encode(), content, damaged)
        for data in (made(*kind, extra), made(*kind, after=(extra,))):
            frames, _ = read_raster(data, LIMITS)
            np.testing.assert_array_equal(frames, plain)


def test_damaged_transparency_is_left_out():
    for colour, depth in ((RGB, 8), (GREY, 16), (INDEXED, 4)):
        plain, _ = read_raster(made(colour, depth), LIMITS)
        extra = chunk(b"tRNS", bytes(6), damaged=True)
        frames, _ = read_raster(made(colour, depth, extra), LIMITS)
        np.testing.assert_array_equal(frames, plain)


@pytest.mark.parametrize("colour, depth", [(GREY, 8), (RGB, 16), (GREY_ALPHA, 16), (INDEXED, 4)])
def test_damage_where_it_matters_is_refused(colour, depth):
    data = made(colour, depth)
    for name in (b"IHDR", b"IDAT", b"PLTE"):
        if name in data:
            bad = bytearray(data)
            bad[data.index(name) + 6] ^= 4
            assert refused(bytes(bad)) == "unreadable"
    for tenth in range(1, 10):
        assert refused(data[: len(data) * tenth // 10]) == "truncated"
    first = [palette(depth)[0]] if colour == INDEXED else []
    for rows in (1, HEIGHT // 2, HEIGHT - 1):
        shorter = png(colour, depth, samples(colour, depth)[:rows], *first)
        assert refused(shorter) == "truncated"
    black = samples(colour, depth)
    black[-3:] = 0
    read_raster(png(colour, depth, black, *first), LIMITS)
    assert refused(MAGIC + chunk(b"IEND", b"")) == "unreadable"


def test_a_critical_chunk_of_an_extended_kind():
    assert refused(made(RGB, 8, chunk(b"CgBI", bytes(4)))) == "unsupported"


def test_huge_pictures_are_refused_from_the_header():
    header = struct.pack(">2I5B", 60_000, 60_000, 16, RGB, 0, 0, 0)
    data = MAGIC + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    assert refused(data) == "too-large"
