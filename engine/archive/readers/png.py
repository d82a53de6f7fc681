"""PNG: its chunks are checked here, its pixels decoded at their full depth.

Pillow reads up to 8 bits, imagecodecs 16. They get the chunks that pixels need and no
other. So no text is inflated, and a chunk that only adds remarks (gamma, colour profile,
dates) costs nothing where it is damaged.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import PngImagePlugin

from medclipsam.engine.archive.limits import Limits, refuse
from medclipsam.engine.archive.readers.pages import Page

MAGIC = b"\x89PNG\r\n\x1a\n"
PIECE = 1 << 20  # bytes inflated at a time
NEEDED = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
GREY, RGB, INDEXED, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # colour types, W3C PNG 11.2.1


# First row and column of each pass, and the steps to the next ones (W3C PNG 8.2).
ADAM7 = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)


@dataclass(frozen=True)
class Header:
    """What IHDR says."""

    width: int
    height: int
    depth: int
    colour: int
    interlaced: bool

    def count_bytes(self) -> int:
        """Bytes of all scanlines, each behind its filter type."""
        samples = {GREY: 1, RGB: 3, INDEXED: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}.get(self.colour, 0)
        total = 0
        for top, left, down, right in ADAM7 if self.interlaced else ((0, 0, 1, 1),):
            rows, columns = -(-(self.height - top) // down), -(-(self.width - left) // right)
            if rows > 0 and columns > 0:
                total += rows * (1 + -(-columns * samples * self.depth // 8))
        return total


@dataclass(frozen=True)
class Chunks:
    """A checked file.

    Attributes:
        header: of the picture.
        needed: a PNG file of the chunks that pixels need alone.
        transparency: content of tRNS; empty where there is none or it is damaged.
    """

    header: Header
    needed: bytes
    transparency: bytes


def read_png(data: bytes, limits: Limits) -> Page:
    """The page of a PNG; Pillow would cut 16-bit colour to its upper bytes.

    Raises:
        InputError: the file is damaged, too large or of an extended kind.
        Exception: whatever Pillow and imagecodecs raise on damaged pixels.
    """
    chunks = _read_chunks(data)
    header = chunks.header
    limits.check_pixels(1, header.height, header.width)
    try:
        values, palette = _decode(chunks)
    except Exception:
        _check_length(chunks)
        raise
    if header.interlaced or not values[-1].any():  # rows that Pillow has not got stay 0
        _check_length(chunks)
    alpha = None
    if header.colour in (GREY_ALPHA, RGB_ALPHA):
        values, last = values[..., :-1], values[..., -1]
        values = values[..., 0] if header.colour == GREY_ALPHA else values
        alpha = last if header.depth == 8 else _upper(last)
    elif chunks.transparency:
        alpha = _keyed(values, header, chunks.transparency)
    return Page(values, 0 if header.depth == 16 else 255, palette, alpha)


def _read_chunks(data: bytes) -> Chunks:
    """Walk the chunks: Pillow itself does not verify the checksums of pixel data."""
    at, header, transparency, needed = len(MAGIC), b"", b"", [MAGIC]
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            break
        intact = zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")
        critical = not name[0] & 0x20
        if critical and not intact:
            raise refuse("unreadable", "expected intact PNG chunks, got a checksum that differs")
        if critical and name not in NEEDED:
            raise refuse(
                "unsupported", f"expected a plain PNG, got one with the critical chunk {name!r}"
            )
        if name == b"IHDR":
            header = data[at + 8 : end - 4]
        elif name == b"tRNS" and intact:
            transparency = data[at + 8 : end - 4]
        if name in NEEDED:
            needed.append(data[at:end])
        if name == b"IEND":
            return Chunks(_read_header(header), b"".join(needed), transparency)
        at = end
    raise refuse("truncated", f"expected a PNG up to its end mark, got {len(data)} bytes")


def _read_header(content: bytes) -> Header:
    if len(content) != 13:
        raise refuse("unreadable", "expected a PNG header of 13 bytes, got a damaged one")
    width, height, depth, colour, _, _, interlaced = struct.unpack(">2I5B", content)
    return Header(width, height, depth, colour, bool(interlaced))


def _decode(chunks: Chunks) -> tuple[np.ndarray, np.ndarray | None]:
    """Values (H, W) or (H, W, C) at full depth, and the palette (256, 3) of indices."""
    header = chunks.header
    if header.depth == 16:
        import imagecodecs

        return imagecodecs.png_decode(chunks.needed), None
    with PngImagePlugin.PngImageFile(io.BytesIO(chunks.needed)) as picture:
        picture.load()
        palette = None
        if picture.mode == "P":
            colours = np.frombuffer(picture.im.getpalette("RGB", "RGB"), np.uint8)
            palette = np.zeros((256, 3), np.uint8)
            palette[: len(colours) // 3] = colours.reshape(-1, 3)
        if picture.mode == "1":
            return np.array(picture.convert("L")), None
        return np.array(picture), palette


def _check_length(chunks: Chunks) -> None:
    """Refuse pixels that end early, which Pillow takes for black ones."""
    inflater, left, at = zlib.decompressobj(), chunks.header.count_bytes(), len(MAGIC)
    while at < len(chunks.needed):
        length, name = struct.unpack_from(">I4s", chunks.needed, at)
        part = chunks.needed[at + 8 : at + 8 + length] if name == b"IDAT" else b""
        while part and left > 0 and not inflater.eof:
            left -= len(inflater.decompress(part, min(left, PIECE)))
            part = inflater.unconsumed_tail
        at += 12 + length
    if left > 0:
        raise refuse("truncated", f"expected {left} more bytes of PNG pixels, got their end")


def _keyed(values: np.ndarray, header: Header, key: bytes) -> np.ndarray | None:
    """uint8 (H, W) of tRNS: an alpha for each index, or one colour that is transparent."""
    if header.colour == INDEXED:
        table = np.full(256, 255, np.uint8)
        table[: min(len(key), 256)] = np.frombuffer(key[:256], np.uint8)
        return table[values]
    count = 3 if header.colour == RGB else 1
    if len(key) != 2 * count:
        return None  # damaged
    samples = np.frombuffer(key, ">u2").astype(np.int64) & ((1 << header.depth) - 1)
    if header.depth < 8:  # as the values have been stretched
        samples = samples * 255 // ((1 << header.depth) - 1)
    equal = values == samples if count == 3 else (values == samples)[..., None]
    return np.where(equal.all(axis=-1), 0, 255).astype(np.uint8)


def _upper(alpha: np.ndarray) -> np.ndarray:
    """uint8 of 16-bit alpha."""
    return ((alpha.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
