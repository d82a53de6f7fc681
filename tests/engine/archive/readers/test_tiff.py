"""TIFF: samples of every depth, in every layout and codec. OpenCV reads what tifffile writes."""

import io
import subprocess
import sys
import zlib

import imagecodecs
import numpy as np
import pytest
from PIL import Image as PillowImage
from tiff_files import (
    COLUMNS,
    HEIGHT,
    JPEG_TOLERANCE,
    LIMITS,
    RAMP,
    ROWS,
    WIDTH,
    check,
    colour,
    entries_of,
    expected,
    levels,
    opencv,
    pack,
    refused,
    robust,
    shown,
    tiff,
    write,
)

from medclipsam.engine.archive.readers.raster import read_raster_levels, read_raster_mask

DEPTHS = ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "f2", "f4", "f8"]
CODECS = ["none", "lzw", "zlib", "packbits", "lzma", "zstd"]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", DEPTHS)
@pytest.mark.parametrize("white_is_zero", [False, True], ids=["black", "white"])
def test_greys_of_every_depth(dtype, order, white_is_zero):
    values = levels(dtype)
    kind = "miniswhite" if white_is_zero else "minisblack"
    data = write(values, photometric=kind, byteorder=order)
    if dtype != "f2" and not white_is_zero:  # OpenCV has no halves, and inverts some whites
        np.testing.assert_array_equal(opencv(data), values)
    wanted = expected(values)
    check(data, 255 - wanted.astype(int) if white_is_zero else wanted)


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 10, 12, 14, 24])
@pytest.mark.parametrize("white_is_zero", [False, True], ids=["black", "white"])
def test_greys_that_do_not_fill_bytes(bits, white_is_zero):
    top = 2**bits - 1
    values = (RAMP / RAMP.max() * top).astype("u1" if bits <= 8 else "u2" if bits <= 16 else "u4")
    kind = "miniswhite" if white_is_zero else "minisblack"
    pixels = values.astype(bool) if bits == 1 else values
    data = write(pixels, photometric=kind, bitspersample=bits)
    assert data.endswith(pack(values, bits)), "tifffile writes what is meant"
    wanted = values.astype(int) * 255 // top if bits <= 8 else robust(values)
    check(data, 255 - wanted if white_is_zero else wanted)


@pytest.mark.parametrize("dtype", DEPTHS)
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("order", "<>")
def test_colour_of_every_depth_and_layout(dtype, planar, order):
    pixels = colour(dtype)
    stored = pixels if planar == "contig" else np.moveaxis(pixels, -1, 0)
    for tile in (None, (16, 32)):
        data = write(stored, photometric="rgb", planarconfig=planar, byteorder=order, tile=tile)
        if tile is None:
            assert stored.astype(f"{order}{dtype}").tobytes() in data
        # OpenCV takes planes for one another, and fails on tiles of bytes.
        if dtype != "f2" and planar == "contig" and not (tile and dtype[1] == "1"):
            np.testing.assert_array_equal(opencv(data), pixels)
        check(data, expected(pixels))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "f4", "f8"])
@pytest.mark.parametrize("layout", ["strips", "tiles", "planar tiles", "one strip", "big"])
def test_codecs_and_predictors(codec, dtype, layout):
    pixels = colour(dtype)
    options = {
        "strips": {"rowsperstrip": 7},
        "tiles": {"tile": (32, 16)},
        "planar tiles": {"tile": (16, 16), "planarconfig": "separate"},
        "one strip": {},
        "big": {"rowsperstrip": 11, "bigtiff": True, "byteorder": ">"},
    }[layout]
    stored = np.moveaxis(pixels, -1, 0) if "planarconfig" in options else pixels
    compression = None if codec == "none" else codec
    for predictor in (False, True):
        if predictor and codec in ("none", "packbits"):
            continue
        data = write(
            stored, photometric="rgb", compression=compression, predictor=predictor, **options
        )
        known = codec not in ("lzma", "zstd") and "planarconfig" not in options
        if known and not (layout == "tiles" and dtype == "u1"):
            np.testing.assert_array_equal(opencv(data), pixels)
        check(data, expected(pixels))


@pytest.mark.parametrize("dtype", ["u2", "i2", "u4"])
def test_predictor_of_differences_on_greys(dtype):
    values = levels(dtype)
    data = write(values, compression="lzw", predictor=2, rowsperstrip=5)
    check(data, robust(values))


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_inside(tiled, channels):
    pixels = colour("u1") if channels == 3 else levels("u1")
    smooth = (RAMP / RAMP.max() * 255).astype(np.uint8)
    pixels = np.dstack([smooth, smooth[::-1], smooth]) if channels == 3 else smooth
    options = {"tile": (16, 16)} if tiled else {"rowsperstrip": 16}
    kinds = ("rgb", "ycbcr") if channels == 3 else ("minisblack", "miniswhite")
    for kind in kinds:
        data = write(
            pixels,
            photometric=kind,
            compression="jpeg",
            compressionargs={"level": 97},
            **options,
        )
        truth = pixels.astype(int)
        if channels == 3:  # whose colours are blurred
            truth = np.array(PillowImage.open(io.BytesIO(data)).convert("RGB")).astype(int)
        got = shown(data)[0].astype(int)
        got = got if channels == 3 else got[..., 0]
        wanted = 255 - truth if kind == "miniswhite" else truth
        assert np.abs(got - wanted).max() <= JPEG_TOLERANCE


@pytest.mark.parametrize("codec", ["group3", "group4", "tiff_ccitt"])
def test_fax(codec):
    bits = (ROWS // 5 + COLUMNS // 7) % 3 == 0
    stream = io.BytesIO()
    PillowImage.fromarray(bits).save(stream, "TIFF", compression=codec)
    check(stream.getvalue(), np.where(bits, 255, 0))
    mask, _ = read_raster_mask(stream.getvalue(), LIMITS)
    np.testing.assert_array_equal(mask[0], bits)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("codec", [None, "lzw", "jpeg"])
def test_orientation_is_not_applied(orientation, codec):
    smooth = (RAMP / RAMP.max() * 255).astype(np.uint8)
    tag = [(274, 3, 1, orientation, True)]
    data = write(smooth, extratags=tag, compression=codec)
    frames = shown(data)
    assert frames.shape[1:3] == (HEIGHT, WIDTH)
    assert np.abs(frames[0, ..., 0].astype(int) - smooth).max() <= JPEG_TOLERANCE


def test_reversed_bits():
    values = ((ROWS + 2 * COLUMNS) % 16).astype(np.uint8)
    body = pack(values, 4)
    turned = bytes(int(f"{byte:08b}"[::-1], 2) for byte in body)
    data = tiff([*entries_of(4, 1, len(body)), (266, 3, [2])], turned)
    check(data, values.astype(int) * 17)


def test_missing_defaults_and_byte_counts():
    body = np.packbits((ROWS + COLUMNS) % 2 == 0, axis=1).tobytes()
    entries = [e for e in entries_of(1, 1, len(body)) if e[0] in (256, 257, 262, 273)]
    check(tiff(entries, body), np.where((ROWS + COLUMNS) % 2 == 0, 255, 0))


ENCODERS = {
    1: bytes,
    5: imagecodecs.lzw_encode,
    8: zlib.compress,
    32773: imagecodecs.packbits_encode,
    34925: imagecodecs.lzma_encode,
    50000: imagecodecs.zstd_encode,
}


def with_codec(entries, codec):
    return [(259, 3, [codec]) if entry[0] == 259 else entry for entry in entries]


@pytest.mark.parametrize("codec", ENCODERS)
@pytest.mark.parametrize("order", "<>")
def test_bits_written_one_by_one(codec, order):
    for bits in (*range(1, 16), *range(17, 32)):
        values = (RAMP / RAMP.max() * (2**bits - 1)).astype("u4")
        body = ENCODERS[codec](pack(values, bits))
        data = tiff(with_codec(entries_of(bits, 1, len(body)), codec), body, order)
        if bits == 24 and order == ">":  # imagecodecs drops a byte there
            assert refused(data)[0] == "unsupported"
        else:
            np.testing.assert_array_equal(read_raster_levels(data, LIMITS)[0][0], values)


@pytest.mark.parametrize("codec", ENCODERS)
def test_a_last_strip_as_high_as_the_others(codec):
    """Some programs fill it up with rows that are not shown."""
    padded = np.vstack([levels("u1"), levels("u1")[:3]])
    strips = [ENCODERS[codec](padded[top : top + 16].tobytes()) for top in (0, 16, 32)]
    sizes = [len(strip) for strip in strips]
    entries = [e for e in with_codec(entries_of(8, 1, 0), codec) if e[0] not in (273, 278, 279)]
    entries += [(273, 4, [0, sizes[0], sizes[0] + sizes[1]]), (278, 3, [16]), (279, 4, sizes)]
    check(tiff(entries, b"".join(strips)), levels("u1"))


def test_jpeg_of_twelve_bits():
    values = (RAMP / RAMP.max() * 4095).astype(np.uint16)
    data = write(values, compression="jpeg", bitspersample=12, compressionargs={"level": 97})
    check(data, robust(values))


@pytest.mark.parametrize("options", [{"rowsperstrip": 10}, {"tile": (16, 16)}])
def test_webp_inside(options):
    pixels = colour("u1")
    lossless = {"level": 100, "lossless": True}
    data = write(pixels, photometric="rgb", compression="webp", compressionargs=lossless, **options)
    check(data, pixels)


def test_the_readers_libraries_wait_for_a_tiff():
    """Decode processes start without them, and they bring neither torch nor OpenCV."""
    program = """
import sys
from medclipsam.engine.archive.limits import Limits
from medclipsam.engine.archive.readers.raster import read_raster
assert not {"tifffile", "imagecodecs"} & set(sys.modules)
read_raster(sys.stdin.buffer.read(), Limits())
assert "imagecodecs" in sys.modules
assert not {"torch", "cv2", "gdcm"} & set(sys.modules)
"""
    data = write(levels("u2"), compression="lzw")
    subprocess.run([sys.executable, "-c", program], input=data, check=True)
