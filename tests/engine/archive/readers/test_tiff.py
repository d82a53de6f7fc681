"""TIFF in every layout: tifffile writes and reads it back, values are known before."""

import io
import struct
import warnings

import numpy as np
import pytest
import tifffile
from PIL import Image as PillowImage

from medclipsam.engine.archive.limits import Limits
from medclipsam.engine.archive.readers.raster import (
    read_raster,
    read_raster_levels,
    read_raster_mask,
)
from medclipsam.engine.errors import InputError

LIMITS = Limits()
ROUNDING = 1  # grey levels
JPEG_TOLERANCE = 6
HEIGHT, WIDTH = 45, 38  # no multiple of a tile or strip
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
RAMP = (ROWS * 130 + COLUMNS * 17).astype(np.float64)
DEPTHS = ["u1", "u2", "u4", "u8", "i1", "i2", "i4", "f2", "f4", "f8"]
CODECS = ["none", "lzw", "zlib", "packbits", "lzma", "zstd"]


def levels(dtype: str, seed: int = 0) -> np.ndarray:
    """(H, W) of ``dtype``, a rising picture and some noise; uses negative values where it can."""
    noise = np.random.default_rng(seed).integers(0, 40, (HEIGHT, WIDTH))
    whole = (RAMP + noise) / (RAMP.max() + 40)
    kind, size = dtype[0], int(dtype[1])
    if kind == "f":
        return (whole * 300 - 150).astype(dtype)
    top = 2 ** min(8 * size - (kind == "i"), 40) - 1
    return (whole * top).astype(np.int64).astype(dtype) - np.array(
        top // 2 if kind == "i" else 0
    ).astype(dtype)


def colour(dtype: str) -> np.ndarray:
    grey = levels(dtype)
    return np.stack([grey, grey[::-1], grey[:, ::-1]], axis=-1)


def write(pixels: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    options.setdefault("metadata", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tifffile.imwrite(stream, pixels, **options)
    return stream.getvalue()


def robust(values: np.ndarray) -> np.ndarray:
    """The window that deep values pass: numpy's percentiles in float64."""
    values = values.astype(np.float64)
    low, high = np.percentile(values, (0.5, 99.5))
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)


def expected(values: np.ndarray) -> np.ndarray:
    return values if values.dtype == np.uint8 else robust(values)


def shown(data: bytes) -> np.ndarray:
    frames, grid = read_raster(data, LIMITS)
    assert grid.kind == "raster" and frames.dtype == np.uint8
    return frames


def check(data: bytes, wanted: np.ndarray) -> None:
    """``wanted`` is (H, W), (H, W, 3) or (F, H, W) in 0–255."""
    frames = shown(data).astype(int)
    if wanted.ndim == 2 or wanted.shape[-1] == 3:
        wanted = wanted[None]
    if wanted.ndim == 3:
        wanted = np.stack([wanted] * 3, axis=-1)
    assert frames.shape == wanted.shape
    assert np.abs(frames - wanted).max() <= ROUNDING


def refused(data: bytes) -> tuple[str, str]:
    with pytest.raises(InputError) as caught:
        read_raster(data, LIMITS)
    return caught.value.reason, str(caught.value)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", DEPTHS)
@pytest.mark.parametrize("white_is_zero", [False, True], ids=["black", "white"])
def test_greys_of_every_depth(dtype, order, white_is_zero):
    values = levels(dtype)
    kind = "miniswhite" if white_is_zero else "minisblack"
    data = write(values, photometric=kind, byteorder=order)
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(data)), values)
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
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(data)), pixels)
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
        np.testing.assert_array_equal(tifffile.imread(io.BytesIO(data)), stored)
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
        np.testing.assert_array_equal(tifffile.imread(io.BytesIO(data)), stored)
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
        truth = tifffile.imread(io.BytesIO(data)).astype(int)
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


def tiff(entries: list[tuple[int, int, list[int]]], body: bytes, order: str = "<") -> bytes:
    """A TIFF written byte by byte: directory, values, then ``body``; 273 is set to its place."""
    sizes = {3: "H", 4: "I"}
    at = 8 + 2 + 12 * len(entries) + 4
    start = at + sum(
        len(v) * struct.calcsize(sizes[k])
        for _, k, v in entries
        if len(v) * struct.calcsize(sizes[k]) > 4
    )
    directory, beyond = struct.pack(order + "H", len(entries)), b""
    for tag, kind, values in sorted(entries):
        values = [start] if tag == 273 else values
        content = struct.pack(f"{order}{len(values)}{sizes[kind]}", *values)
        place = content.ljust(4, b"\0")
        if len(content) > 4:
            place, beyond = struct.pack(order + "I", at + len(beyond)), beyond + content
        directory += struct.pack(order + "HHI", tag, kind, len(values)) + place
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(order + "I", 8) + directory + bytes(4) + beyond + body


def entries_of(bits: int, photometric: int, size: int) -> list[tuple[int, int, list[int]]]:
    return [
        (256, 3, [WIDTH]),
        (257, 3, [HEIGHT]),
        (258, 3, [bits]),
        (259, 3, [1]),
        (262, 3, [photometric]),
        (273, 4, [0]),
        (277, 3, [1]),
        (278, 3, [HEIGHT]),
        (279, 4, [size]),
    ]


def pack(values: np.ndarray, bits: int) -> bytes:
    single = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(single.reshape(len(values), -1).astype(bool), axis=1).tobytes()


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


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("writer", ["plain", "imagej", "ome", "contiguous"])
def test_stacks_have_every_frame(dtype, count, writer):
    stack = np.stack([np.roll(levels(dtype), 3 * k, 1) for k in range(count)])
    options = {
        "plain": {"photometric": "minisblack", "metadata": {}},
        "imagej": {"imagej": True, "metadata": {"axes": "ZYX"}},
        "ome": {"ome": True, "metadata": {"axes": "ZYX"}},
        "contiguous": {"photometric": "minisblack", "metadata": {"axes": "ZYX"}},
    }[writer]
    data = write(stack, **options)
    check(data, expected(stack))
    if writer == "imagej" and count > 1:
        check(one_directory(data), expected(stack))


def one_directory(data: bytes) -> bytes:
    """The file as ImageJ writes stacks beyond 4 GiB: a single directory."""
    order = "<" if data[:2] == b"II" else ">"
    (at,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, at)
    end = at + 2 + 12 * count
    cut = bytearray(data)
    cut[end : end + 4] = bytes(4)
    with tifffile.TiffFile(io.BytesIO(bytes(cut))) as file:
        assert len(file.pages) == 1 and file.is_imagej
        pages = file.imagej_metadata["images"]
        assert file.series[0].shape[0] == pages, "the oracle finds them all"
    return bytes(cut)


def test_a_single_directory_stack_that_is_cut_off():
    stack = np.stack([levels("u2")] * 5)
    data = one_directory(write(stack, imagej=True))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        end = file.pages[0].dataoffsets[0] + stack.nbytes
    assert refused(data[: end - 10])[0] == "truncated"


def test_a_description_copied_from_a_stack_makes_no_stack():
    stream = io.BytesIO()
    info = {270: "ImageJ=1.53\nimages=12\nslices=12\n"}
    PillowImage.fromarray(levels("u1")).save(stream, "TIFF", tiffinfo=info)
    data = stream.getvalue()
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        if file.pages[0].offset > file.pages[0].dataoffsets[0]:
            check(data, levels("u1"))
        else:  # this Pillow writes the directory first, as ImageJ does
            assert refused(data)[0] == "truncated"


def test_truncated_shaped_series():
    stack = np.stack([np.roll(levels("u2"), k, 0) for k in range(6)])
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream, shaped=True) as writer:
        writer.write(stack, photometric="minisblack", metadata={"truncate": True}, truncate=True)
    data = stream.getvalue()
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        assert len(file.pages) == 1 and file.series[0].shape[0] == 6
    check(data, robust(stack))


def test_ome_channels_times_and_pyramids():
    stack = np.stack([np.roll(levels("u2"), k, 0) for k in range(6)]).reshape(2, 3, HEIGHT, WIDTH)
    data = write(stack, ome=True, photometric="minisblack", metadata={"axes": "TCYX"})
    check(data, robust(stack.reshape(6, HEIGHT, WIDTH)))
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream, ome=True) as writer:
        options = {"photometric": "minisblack", "metadata": {"axes": "CYX"}}
        writer.write(stack[0], subifds=1, **options)
        writer.write(stack[0][:, ::2, ::2], subfiletype=1, photometric="minisblack")
    check(stream.getvalue(), robust(stack[0]))
    rgb = write(colour("u1"), ome=True, photometric="rgb", metadata={"axes": "YXS"})
    check(rgb, colour("u1"))


def test_an_ome_file_that_lost_pages():
    stack = np.stack([levels("u2")] * 4)
    data = write(stack, ome=True, photometric="minisblack", metadata={"axes": "ZYX"})
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        at = file.pages[1].offset
    (count,) = struct.unpack_from("<H", data, at)
    end = at + 2 + 12 * count
    reason, message = refused(data[:end] + bytes(4) + data[end + 4 :])
    assert reason == "truncated" and "4 pages as OME says, got 2" in message


def test_reduced_copies_are_no_frames():
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(levels("u1"), metadata=None)
        writer.write(levels("u1")[::2, ::2], subfiletype=1, metadata=None)
    check(stream.getvalue(), levels("u1"))
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(levels("u1"), metadata=None)
        old = [(255, 3, 1, 2, True)]
        writer.write(levels("u1")[::2, ::2], metadata=None, extratags=old)
    check(stream.getvalue(), levels("u1"))


@pytest.mark.parametrize("count", [3, 4])
def test_planes_that_tifffile_labels_by_itself(count):
    """Of (3, H, W) it makes RGB; of (4, H, W) RGB and alpha, which a stack of four is not."""
    stack = np.stack([np.roll(levels("u2"), k, 0) for k in range(count)])
    data = write(stack, metadata={})
    if count == 3:
        check(data, robust(np.moveaxis(stack, 0, -1)))
    else:
        reason, message = refused(data)
        assert reason == "unsupported" and "minisblack" in message


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
