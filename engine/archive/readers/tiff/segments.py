"""Strips and tiles of a TIFF page, from compressed bytes to stored samples.

Refuses to know colours. Deflate and LZMA are inflated here, with their exact size as the
cap; the other codecs are libtiff's, which gets one small TIFF of known tags per page, so
that no other tag of a file reaches it.
"""

from __future__ import annotations

import io
import lzma
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import TiffImagePlugin

from medclipsam.engine.archive.limits import refuse

RAW, LZW, JPEG, PACKBITS, LZMA, ZSTD, WEBP = 1, 5, 7, 32773, 34925, 50000, 50001
DEFLATE = (8, 32946)
FAX = (2, 3, 4)
BYTES_BY_LIBTIFF = (LZW, PACKBITS, ZSTD)  # bytes in, bytes out
PICTURES = (*FAX, JPEG, WEBP)  # codecs that know rows and colours
PREDICTED = (*DEFLATE, LZW, LZMA, ZSTD)
BATCH = 1 << 26  # bytes that libtiff unpacks at a time
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
JPEG_END = b"\xff\xd9"


@dataclass(frozen=True)
class Layout:
    """How the samples of one page are stored; all sizes in pixels.

    Attributes:
        size: (rows, columns) of the page.
        segment: (rows, columns) of a strip or tile.
        tiled: whether every segment has its full size, as tiles have.
        samples: in each pixel of a segment: of planar pages, one.
        planes: of segments, one after the other.
        bits: of a sample.
        dtype: of a sample, in the byte order of the file.
        codec: the compression's number.
        predictor: 1 none, 2 horizontal, 3 floating point.
        reverse: whether the lowest bit of a byte is its first.
        offsets: of the segments in the file.
        counts: their bytes.
        options: (tag, type, values) that the codec is told.
    """

    size: tuple[int, int]
    segment: tuple[int, int]
    tiled: bool
    samples: int
    planes: int
    bits: int
    dtype: np.dtype
    codec: int
    predictor: int
    reverse: bool
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    options: tuple[tuple[int, int, bytes], ...] = ()

    @property
    def across(self) -> int:
        """Segments beside each other."""
        return -(-self.size[1] // self.segment[1])

    @property
    def down(self) -> int:
        """Segments below each other."""
        return -(-self.size[0] // self.segment[0])

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of a segment; rows begin with a byte of their own."""
        return -(-self.segment[1] * self.samples * self.bits // 8)

    def rows_of(self, index: int) -> int:
        """Rows in segment ``index`` of a plane."""
        rows, place = self.segment[0], index // self.across
        return rows if self.tiled else min(rows, self.size[0] - place * rows)


def read_samples(data: bytes, layout: Layout) -> np.ndarray:
    """All samples of a page: (H, W, S), in this machine's byte order.

    Raises:
        InputError: a segment is damaged, too short, or outside the file.
        Exception: whatever Pillow raises on damaged segments.
    """
    rows, columns = layout.size
    native = layout.dtype.newbyteorder("=")
    out = np.empty((rows, columns, layout.samples * layout.planes), native)
    count = layout.across * layout.down
    for plane in range(layout.planes):
        part = slice(plane * layout.samples, (plane + 1) * layout.samples)
        pieces = _segments(data, layout, plane * count)
        if layout.codec in PICTURES:
            out[..., part] = _by_libtiff(list(pieces), layout)
            continue
        for index, raw in enumerate(_unpack(pieces, layout)):
            samples = _to_samples(raw, layout)
            top = index // layout.across * layout.segment[0]
            left = index % layout.across * layout.segment[1]
            place = out[top : top + layout.segment[0], left : left + layout.segment[1], part]
            place[...] = samples[: place.shape[0], : place.shape[1]]
    return out


def _segments(data: bytes, layout: Layout, first: int) -> Iterator[bytes]:
    """The compressed bytes of one plane's segments."""
    last = first + layout.across * layout.down
    for offset, count in zip(layout.offsets[first:last], layout.counts[first:last], strict=True):
        piece = data[offset : offset + count]
        yield piece.translate(REVERSED) if layout.reverse else piece


def _unpack(pieces: Iterator[bytes], layout: Layout) -> Iterator[np.ndarray]:
    """Each segment as uint8 (rows, bytes of a row)."""
    if layout.codec in BYTES_BY_LIBTIFF:
        yield from _bytes_by_libtiff(pieces, layout)
        return
    for index, piece in enumerate(pieces):
        rows = layout.rows_of(index)
        size = rows * layout.row_bytes
        raw = piece
        if layout.codec in DEFLATE:
            raw = _inflate(piece, size)
        elif layout.codec == LZMA:
            raw = _expand(piece, size)
        if len(raw) < size:
            raise refuse("truncated", f"expected a TIFF segment of {size} bytes, got {len(raw)}")
        yield np.frombuffer(raw, np.uint8, size).reshape(rows, layout.row_bytes)


def _inflate(piece: bytes, size: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(piece, size)
        inflater.decompress(inflater.unconsumed_tail, 1)  # on to the checksum, where it is next
    except zlib.error as exc:
        raise refuse("unreadable", "expected an intact TIFF segment, got damaged Deflate") from exc
    return raw


def _expand(piece: bytes, size: int) -> bytes:
    try:
        return lzma.LZMADecompressor(memlimit=1 << 28).decompress(piece, size)
    except lzma.LZMAError as exc:
        raise refuse("unreadable", "expected an intact TIFF segment, got damaged LZMA") from exc


def _bytes_by_libtiff(pieces: Iterator[bytes], layout: Layout) -> Iterator[np.ndarray]:
    """Segments as strips of a grey picture that is as wide as a row has bytes."""
    batch: list[bytes] = []
    heights: list[int] = []
    full = layout.segment[0] * layout.row_bytes
    count = layout.across * layout.down
    for index, piece in enumerate(pieces):
        batch.append(piece)
        heights.append(layout.rows_of(index))
        if index + 1 < count and (len(batch) + 1) * full <= BATCH:
            continue
        size = (sum(heights), layout.row_bytes)
        tags = [(258, 3, [8]), (262, 3, [1]), (277, 3, [1]), (278, 4, [layout.segment[0]])]
        raw = _decode(_make_tiff(size, layout.codec, batch, tags))
        yield from np.split(raw, np.cumsum(heights[:-1]))
        batch, heights = [], []


def _by_libtiff(pieces: list[bytes], layout: Layout) -> np.ndarray:
    """(H, W, S) of one plane through a codec that knows rows and colours."""
    if layout.codec == JPEG and any(JPEG_END not in piece[-64:] for piece in pieces):
        raise refuse("truncated", "expected JPEG segments up to their end mark, got only a part")
    photometric = {1: 1, 3: 2}.get(layout.samples)
    if photometric is None:
        raise refuse(
            "unsupported",
            f"expected 1 or 3 samples in a pixel of a JPEG or WebP TIFF, got {layout.samples}",
        )
    tags = [(258, 3, [layout.bits] * layout.samples), (277, 3, [layout.samples])]
    options = {tag for tag, _, _ in layout.options}
    tags += [(262, 3, [photometric])] if 262 not in options else []
    if layout.tiled:
        tags += [(322, 4, [layout.segment[1]]), (323, 4, [layout.segment[0]])]
    else:
        tags += [(278, 4, [layout.segment[0]])]
    data = _make_tiff(layout.size, layout.codec, pieces, tags, layout.options, layout.tiled)
    pixels = _decode(data)
    return pixels.reshape(*layout.size, layout.samples)


def _make_tiff(
    size: tuple[int, int],
    codec: int,
    pieces: list[bytes],
    tags: list[tuple[int, int, list[int]]],
    options: tuple[tuple[int, int, bytes], ...] = (),
    tiled: bool = False,
) -> bytes:
    """A little-endian TIFF of one page around ``pieces``."""
    ends = np.cumsum([8] + [len(piece) for piece in pieces])
    if ends[-1] >= 1 << 31:
        raise refuse("too-large", "a TIFF page of 2 GiB of compressed pixels cannot be decoded")
    places = [(324, 325), (273, 279)][not tiled]
    entries = [
        *tags,
        (256, 4, [size[1]]),
        (257, 4, [size[0]]),
        (259, 3, [codec]),
        (284, 3, [1]),
        (places[0], 4, list(ends[:-1])),
        (places[1], 4, [len(piece) for piece in pieces]),
    ]
    packed = [
        (tag, kind, np.array(values, {3: "<u2", 4: "<u4"}[kind]).tobytes())
        for tag, kind, values in entries
    ]
    packed = sorted([*packed, *options])
    head = int(ends[-1]) + int(ends[-1]) % 2
    at = head + 2 + 12 * len(packed) + 4
    directory, beyond = struct.pack("<H", len(packed)), b""
    for tag, kind, content in packed:
        count = len(content) // {3: 2, 4: 4, 7: 1}[kind]
        place = content.ljust(4, b"\0")
        if len(content) > 4:
            place = struct.pack("<I", at + len(beyond))
            beyond += content + b"\0" * (len(content) % 2)
        directory += struct.pack("<HHI", tag, kind, count) + place
    body = b"".join(pieces)
    start = b"II*\0" + struct.pack("<I", head)
    return b"".join((start, body, bytes(head - int(ends[-1])), directory, bytes(4), beyond))


def _decode(data: bytes) -> np.ndarray:
    with TiffImagePlugin.TiffImageFile(io.BytesIO(data)) as picture:
        picture.load()
        return np.array(picture)


def _to_samples(raw: np.ndarray, layout: Layout) -> np.ndarray:
    """(rows, columns, S) from the bytes of a segment's rows."""
    shape = (len(raw), layout.segment[1], layout.samples)
    bits, dtype = layout.bits, layout.dtype
    if bits != 8 * dtype.itemsize:
        return _unpack_bits(raw, bits, dtype, shape)
    if layout.predictor == 3:
        return _undo_floating(raw, layout, shape)
    values = np.ascontiguousarray(raw).view(dtype).reshape(shape)
    if layout.predictor == 2:
        whole = values.view(f"{dtype.byteorder}u{dtype.itemsize}")
        unsigned = np.dtype(f"u{dtype.itemsize}")
        return np.cumsum(whole, axis=1, dtype=unsigned).view(dtype.newbyteorder("="))
    return values


def _unpack_bits(
    raw: np.ndarray, bits: int, dtype: np.dtype, shape: tuple[int, int, int]
) -> np.ndarray:
    """Samples that do not fill bytes: one after the other, highest bit first."""
    rows, columns, samples = shape
    out = np.zeros(shape, dtype.newbyteorder("="))
    for row in range(rows):
        single = np.unpackbits(raw[row])[: columns * samples * bits]
        planes = single.reshape(columns, samples, bits)
        for bit in range(bits):
            out[row] |= planes[..., bit].astype(out.dtype) << (bits - 1 - bit)
    return out


def _undo_floating(raw: np.ndarray, layout: Layout, shape: tuple[int, int, int]) -> np.ndarray:
    """Floats whose bytes were sorted by significance and differenced (Adobe TIFF Note 3)."""
    rows, columns, samples = shape
    size = layout.dtype.itemsize
    sums = np.cumsum(raw.reshape(rows, -1, samples), axis=1, dtype=np.uint8)
    sorted_bytes = sums.reshape(rows, size, columns * samples)
    big = np.ascontiguousarray(sorted_bytes.transpose(0, 2, 1)).view(f">f{size}")
    return big.reshape(shape)
