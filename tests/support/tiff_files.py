"""TIFF files for the tests, written by tifffile or byte by byte, and what they must show."""

import io
import struct
import warnings

import cv2
import numpy as np
import pytest
import tifffile

from medclipsam.engine.archive.limits import Limits
from medclipsam.engine.archive.readers.raster import read_raster
from medclipsam.engine.errors import InputError

LIMITS = Limits()
ROUNDING = 1  # grey levels
JPEG_TOLERANCE = 6
HEIGHT, WIDTH = 45, 38  # no multiple of a tile or strip
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
RAMP = (ROWS * 130 + COLUMNS * 17).astype(np.float64)


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


def opencv(data: bytes) -> np.ndarray:
    """The pixels as another reader, OpenCV with its libtiff, finds them; colours as RGB."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels is not None, "OpenCV reads the file"
    return pixels if pixels.ndim == 2 else pixels[..., ::-1]


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


def tiff(entries: list[tuple[int, int, list[int]]], body: bytes, order: str = "<") -> bytes:
    """A TIFF written byte by byte: directory, values, then ``body``; 273 counts from there."""
    sizes = {3: "H", 4: "I"}
    at = 8 + 2 + 12 * len(entries) + 4
    start = at + sum(
        len(v) * struct.calcsize(sizes[k])
        for _, k, v in entries
        if len(v) * struct.calcsize(sizes[k]) > 4
    )
    directory, beyond = struct.pack(order + "H", len(entries)), b""
    for tag, kind, values in sorted(entries):
        values = [start + value for value in values] if tag == 273 else values
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
