"""PNG, JPEG, TIFF and BMP: what is shown, and what is refused."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image as PillowImage

from medclipsam.engine.archive.limits import Limits
from medclipsam.engine.archive.readers.raster import read_raster
from medclipsam.engine.archive.readers.window import as_frames, over_black, robust_window
from medclipsam.engine.errors import InputError

LIMITS = Limits()
JPEG_TOLERANCE = 6  # grey levels: quality 95 on a smooth picture
HEIGHT, WIDTH = 12, 17
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
GREY = (ROWS * 8 + COLUMNS * 9).astype(np.uint8)
COLOUR = np.stack([GREY, GREY // 2, 255 - GREY], axis=-1)
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)


def save(picture: PillowImage.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def shown(data: bytes, limits: Limits = LIMITS) -> np.ndarray:
    frames, grid = read_raster(data, limits)
    assert grid.kind == "raster" and grid.spacing is None
    assert frames.dtype == np.uint8 and frames.shape[-1] == 3
    return frames


def refused(data: bytes, limits: Limits = LIMITS) -> str:
    with pytest.raises(InputError) as caught:
        read_raster(data, limits)
    return caught.value.reason


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_grey_and_colour_come_back_exactly(kind):
    grey = shown(save(PillowImage.fromarray(GREY), kind))
    np.testing.assert_array_equal(grey[0], np.dstack([GREY] * 3))
    assert grey.strides[-1] == 0, "one byte a pixel"
    colour = shown(save(PillowImage.fromarray(COLOUR), kind))
    np.testing.assert_array_equal(colour[0], COLOUR)


def test_grey_stored_in_colour_is_found_out():
    frames = shown(save(PillowImage.fromarray(np.dstack([GREY] * 3)), "PNG"))
    assert frames.strides[-1] == 0
    np.testing.assert_array_equal(frames[0, ..., 1], GREY)


def test_jpeg_grey_colour_and_cmyk():
    grey = shown(save(PillowImage.fromarray(GREY), "JPEG", quality=95))
    assert np.abs(grey[0, ..., 0].astype(int) - GREY).max() <= JPEG_TOLERANCE
    colour = shown(save(PillowImage.fromarray(COLOUR), "JPEG", quality=95, subsampling=0))
    assert np.abs(colour[0].astype(int) - COLOUR).max() <= JPEG_TOLERANCE
    cmyk = shown(save(PillowImage.fromarray(COLOUR).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(cmyk[0].astype(int) - COLOUR).max() <= 2 * JPEG_TOLERANCE


def test_bilevel_palette_and_alpha():
    bits = GREY > 100
    frames = shown(save(PillowImage.fromarray(bits), "PNG"))
    np.testing.assert_array_equal(frames[0, ..., 0], np.where(bits, 255, 0))

    palette = PillowImage.fromarray((GREY // 86).astype(np.uint8))
    palette.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 250])
    colours = np.array([[10, 20, 30], [200, 0, 0], [0, 0, 250]], np.uint8)
    np.testing.assert_array_equal(shown(save(palette, "PNG"))[0], colours[GREY // 86])

    alpha = np.where(COLUMNS < 8, 0, 255).astype(np.uint8)
    rgba = np.dstack([COLOUR, alpha])
    expected = np.where(alpha[..., None] > 0, COLOUR, 0)
    for kind in ("PNG", "TIFF"):
        frames = shown(save(PillowImage.fromarray(rgba), kind))
        np.testing.assert_array_equal(frames[0], expected)
    frames = shown(save(PillowImage.fromarray(np.dstack([GREY, alpha])), "PNG"))
    np.testing.assert_array_equal(frames[0, ..., 2], expected[..., 0])


def test_half_transparent_is_half_as_bright():
    np.testing.assert_array_equal(over_black(np.array([[200, 100, 0, 128]])), [[100, 50, 0]])


@pytest.mark.parametrize(
    "values",
    [
        GREY.astype(np.uint16) * 16,
        GREY.astype(np.uint16) + 30000,
        GREY.astype(np.int32) * 1000 - 90000,
        GREY.astype(np.float32) / 1e6 - 3,
    ],
    ids=["12 bits", "high 16 bits", "signed 32 bits", "float"],
)
def test_deep_greys_use_the_whole_range(values):
    frames = shown(save(PillowImage.fromarray(values), "TIFF"))[0, ..., 0]
    assert frames.min() == 0 and frames.max() == 255
    steps = np.diff(frames.reshape(-1)[np.argsort(values, axis=None)].astype(int))
    assert (steps >= 0).all(), "brighter stays brighter"
    assert len(np.unique(frames)) > 0.9 * len(np.unique(values))


def test_deep_png_and_big_endian_tiff_agree():
    deep = GREY.astype(np.uint16) * 200
    png = shown(save(PillowImage.fromarray(deep), "PNG"))
    big = PillowImage.frombytes("I;16B", (WIDTH, HEIGHT), deep.astype(">u2").tobytes())
    tiff = save(big, "TIFF")
    assert tiff.startswith(b"MM")
    np.testing.assert_array_equal(png, shown(tiff))


def test_robust_window_ignores_outliers_unless_there_is_nothing_else():
    values = np.arange(10000, dtype=np.float64).reshape(1, 100, 100)
    values[0, 0, 0] = 1e30
    window = robust_window(values)
    assert window[0, 50, 50] in range(125, 131)
    rare = np.zeros((1, 100, 100), np.float32)
    rare[0, 3, 4] = 7
    np.testing.assert_array_equal(np.argwhere(robust_window(rare) == 255), [[0, 3, 4]])


def test_pages_become_frames_under_one_window():
    stack = [PillowImage.fromarray((GREY + np.uint16(k * 300)).astype(np.uint16)) for k in range(3)]
    data = save(stack[0], "TIFF", save_all=True, append_images=stack[1:])
    frames = shown(data)
    assert frames.shape == (3, HEIGHT, WIDTH, 3)
    means = frames.mean(axis=(1, 2, 3))
    assert means[0] < means[1] < means[2]
    assert refused(data, Limits(max_pixels=3 * HEIGHT * WIDTH - 1)) == "too-large"
    other = PillowImage.fromarray(NOISE)
    uneven = save(PillowImage.fromarray(GREY), "TIFF", save_all=True, append_images=[other])
    assert refused(uneven) == "unsupported"


def test_exif_orientation_is_not_applied():
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    frames = shown(save(PillowImage.fromarray(GREY), "JPEG", exif=exif))
    assert frames.shape[1:3] == (HEIGHT, WIDTH)


def stack_of_noise() -> list[PillowImage.Image]:
    return [PillowImage.fromarray(np.roll(NOISE, k, 0)) for k in range(3)]


def corpus() -> dict[str, bytes]:
    noise = PillowImage.fromarray(NOISE)
    pages = stack_of_noise()
    more = {"save_all": True, "append_images": pages[1:]}
    return {
        "png": save(noise, "PNG"),
        "jpeg": save(noise, "JPEG"),
        "progressive": save(noise, "JPEG", progressive=True),
        "tiff": save(noise, "TIFF"),
        "deflate": save(noise, "TIFF", compression="tiff_adobe_deflate"),
        "lzw": save(noise, "TIFF", compression="tiff_lzw"),
        "pages": save(pages[0], "TIFF", **more),
        "deflate pages": save(pages[0], "TIFF", compression="tiff_adobe_deflate", **more),
        "bmp": save(noise, "BMP"),
    }


CORPUS = corpus()


@pytest.mark.parametrize("name", CORPUS)
def test_a_file_cut_off_anywhere_is_refused_or_whole(name):
    data = CORPUS[name]
    whole = shown(data)
    cuts = {len(data) * tenth // 10 for tenth in range(10)} | {len(data) - k for k in range(1, 12)}
    reasons = []
    for cut in sorted(cuts | set(range(1, 40, 3))):
        try:
            frames, _ = read_raster(data[:cut], LIMITS) if cut > 8 else (None, None)
        except InputError as error:
            reasons.append(error.reason)
        else:
            if frames is not None:
                np.testing.assert_array_equal(frames, whole)
    assert "truncated" in reasons


@pytest.mark.parametrize("name", CORPUS)
def test_garbage_after_the_magic_bytes(name):
    rng = np.random.default_rng(1)
    for size in (0, 10, 100, 5000):
        assert refused(CORPUS[name][:8] + rng.bytes(size)) in {
            "unreadable",
            "truncated",
            "too-large",
            "unsupported",
            "empty",
        }


def test_a_flipped_bit_in_png_pixels_is_noticed():
    data = bytearray(CORPUS["png"])
    data[len(data) // 2] ^= 4
    assert refused(bytes(data)) == "unreadable"


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, data: bytes) -> bytes:
    header = struct.pack(">2I5B", width, height, depth, 0, 0, 0, 0)
    magic = b"\x89PNG\r\n\x1a\n"
    return magic + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_huge_and_empty_pictures_are_refused_from_the_header():
    row = b"\0" + bytes(65000 // 8)
    compressor = zlib.compressobj(9)
    data = b"".join(compressor.compress(row) for _ in range(65000)) + compressor.flush()
    bomb = png(65000, 65000, 1, data)
    start = time.monotonic()
    assert refused(bomb) == "too-large"
    assert time.monotonic() - start < 1
    assert refused(png(0, 5, 8, zlib.compress(b""))) in ("empty", "unreadable")


def test_constant_pictures():
    assert refused(save(PillowImage.new("L", (1, 1), 9), "PNG")) == "constant"
    assert refused(save(PillowImage.new("RGB", (9, 9), (200, 0, 0)), "PNG")) == "constant"
    nearly = PillowImage.new("RGB", (9, 9), (200, 0, 0))
    nearly.putpixel((4, 4), (200, 1, 0))
    shown(save(nearly, "PNG"))


def test_not_finite():
    values = GREY.astype(np.float32)
    for bad in (np.nan, np.inf):
        values[3, 3] = bad
        assert refused(save(PillowImage.fromarray(values), "TIFF")) == "non-finite"


def test_as_frames_keeps_colour():
    frames = as_frames(COLOUR[None])
    assert frames.shape == (1, HEIGHT, WIDTH, 3) and frames.strides[-1] == 1
