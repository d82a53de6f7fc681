"""From the directory of a TIFF page to the layout of its samples, or why it has none here."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from medclipsam.engine.archive.limits import refuse
from medclipsam.engine.archive.readers.tiff.directory import Directory
from medclipsam.engine.archive.readers.tiff.segments import (
    BYTES_BY_LIBTIFF,
    DEFLATE,
    FAX,
    JPEG,
    LZMA,
    PICTURES,
    PREDICTED,
    RAW,
    WEBP,
    Layout,
)

KNOWN_CODECS = (RAW, *DEFLATE, LZMA, *BYTES_BY_LIBTIFF, *PICTURES)
OTHER_CODECS = {
    6: "old-style JPEG",
    9: "JBIG",
    10: "JBIG",
    32766: "NeXT",
    32771: "CCITT RLE with words",
    32809: "ThunderScan",
    32908: "PixarFilm",
    32909: "PixarLog",
    33003: "JPEG 2000 (Aperio, YCbCr)",
    33004: "JPEG 2000",
    33005: "JPEG 2000 (Aperio, RGB)",
    34661: "JBIG",
    34676: "SGI LogLuv",
    34677: "SGI LogLuv, 24 bits",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "lossy JPEG of DNG",
    34926: "Zstandard with an old number",
    34933: "PNG",
    34934: "JPEG XR",
    22610: "JPEG XR",
    48124: "Jetraw",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
SAMPLE_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}  # SampleFormat; undefined data are counted

YCBCR = 6  # a PhotometricInterpretation


def read_layout(directory: Directory, size: int) -> Layout:
    """How the samples of one page are stored.

    Raises:
        InputError: it is damaged, or stored in a way that cannot be read here.
    """
    width, height = directory.number("ImageWidth"), directory.number("ImageLength")
    samples = directory.number("SamplesPerPixel", 1)
    if samples < 1:
        raise refuse("empty", f"expected samples in a pixel, got {samples}")
    if (depth := directory.number("ImageDepth", 1)) > 1:
        raise refuse("unsupported", f"expected flat TIFF pages, got volumes of {depth} slices")
    codec = directory.number("Compression", RAW)
    if codec not in KNOWN_CODECS:
        name = OTHER_CODECS.get(codec, "unknown")
        raise refuse("unsupported", f"no decoder for TIFF compression {codec} ({name})")
    planar = directory.number("PlanarConfiguration", 1) == 2 and samples > 1
    bits, dtype = _sample_type(directory, codec)
    tiled = "TileOffsets" in directory.values
    if tiled:
        segment = directory.number("TileLength"), directory.number("TileWidth")
    else:
        segment = min(height, directory.number("RowsPerStrip", height)), width
    if min(segment) < 1:
        raise refuse("unreadable", f"expected strips or tiles with pixels, got {segment}")
    layout = Layout(
        (height, width),
        segment,
        tiled,
        1 if planar else samples,
        samples if planar else 1,
        bits,
        dtype,
        codec,
        _predictor(directory, codec, bits, dtype),
        directory.number("FillOrder", 1) == 2 and codec not in (JPEG, WEBP),
        directory.numbers("TileOffsets" if tiled else "StripOffsets"),
        directory.numbers("TileByteCounts" if tiled else "StripByteCounts"),
        _options(directory, codec, planar),
    )
    return _with_places(layout, size)


def _sample_type(directory: Directory, codec: int) -> tuple[int, np.dtype]:
    """Bits of a sample, and the type that holds one."""
    all_bits = set(directory.numbers("BitsPerSample", 1))
    formats = set(directory.numbers("SampleFormat", 1))
    if len(all_bits) > 1 or len(formats) > 1:
        raise refuse("unsupported", "expected samples of one type, got several in a pixel")
    bits, kind = all_bits.pop(), SAMPLE_KINDS.get(formats.pop(), "complex")
    names = {"u": "unsigned", "i": "signed", "f": "float"}
    whole = (8, 16, 32, 64)
    known = {"u": bits < 32 or bits in whole, "i": bits in whole, "f": bits in (16, 32, 64)}
    if bits < 1 or not known.get(kind) or (codec in PICTURES and bits not in (1, 8)):
        raise refuse(
            "unsupported",
            f"expected TIFF samples of a usual depth, got {bits} bits, {names.get(kind, kind)}"
            + (" as JPEG" if codec == JPEG else ""),
        )
    size = next(size for size in whole if bits <= size)
    return bits, np.dtype(f"{directory.order}{kind}{size // 8}")


def _predictor(directory: Directory, codec: int, bits: int, dtype: np.dtype) -> int:
    predictor = directory.number("Predictor", 1)
    if codec not in PREDICTED or predictor == 1:
        return 1
    whole = bits == 8 * dtype.itemsize
    if not whole or predictor not in (2, 3) or (predictor == 3 and dtype.kind != "f"):
        raise refuse(
            "unsupported", f"no decoder for TIFF predictor {predictor} of {bits}-bit samples"
        )
    return predictor


def _options(directory: Directory, codec: int, planar: bool) -> tuple[tuple[int, int, bytes], ...]:
    """What libtiff's own codecs must know beyond sizes, as (tag, type, little-endian values)."""
    options: list[tuple[int, int, bytes]] = []
    if codec in FAX:
        for tag, name in ((292, "T4Options"), (293, "T6Options")):
            if name in directory.values:
                options.append((tag, 4, directory.values[name].astype("<u4").tobytes()))
    if codec == JPEG:
        if "JPEGTables" in directory.values:
            options.append((347, 7, directory.values["JPEGTables"].tobytes()))
        if directory.number("PhotometricInterpretation") == YCBCR and not planar:
            factors = np.array(directory.numbers("YCbCrSubSampling", 2, 2), "<u2").tobytes()
            options += [(262, 3, np.array([YCBCR], "<u2").tobytes()), (530, 3, factors)]
    return tuple(options)


def _with_places(layout: Layout, size: int) -> Layout:
    """Check the places of all segments; those of files that leave out counts are completed."""
    count = layout.across * layout.down * layout.planes
    offsets, counts = layout.offsets[:count], layout.counts[:count]
    if len(offsets) < count:
        raise refuse("unreadable", f"expected {count} TIFF strips or tiles, got {len(offsets)}")
    if layout.codec == RAW:
        each = layout.across * layout.down
        exact = [layout.rows_of(index % each) * layout.row_bytes for index in range(count)]
        if not counts:
            counts = tuple(exact)
        elif any(got < wanted for got, wanted in zip(counts, exact, strict=False)):
            raise refuse("truncated", "expected whole TIFF strips or tiles, got shorter ones")
        counts = tuple(min(got, wanted) for got, wanted in zip(counts, exact, strict=False))
    elif not counts and count == 1:
        counts = (max(0, size - offsets[0]),)
    if len(counts) < count or not all(offsets) or not all(counts):
        raise refuse("truncated", f"expected {count} TIFF strips or tiles, got some without data")
    return replace(layout, offsets=offsets, counts=counts)
