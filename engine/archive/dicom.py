"""DICOM images, read by pydicom.

Only the elements named in ``ELEMENTS`` are parsed: what identifies a patient is never
looked at, so it cannot reach a result, a message or a log.
"""

from __future__ import annotations

import io
import struct
import zlib
from itertools import islice

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.filereader import read_dataset
from pydicom.pixels import apply_color_lut, get_decoder, pixel_array
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    RLELossless,
)

from medclipsam.engine.archive.codecs import HAVE_GDCM
from medclipsam.engine.archive.grayscale import functional, show_grey
from medclipsam.engine.archive.limits import Limits, refuse
from medclipsam.engine.archive.lossless import DECODER
from medclipsam.engine.archive.window import as_frames, check_values
from medclipsam.engine.errors import BackendError, InputError
from medclipsam.engine.types import Grid

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
ELEMENTS = [
    "SequenceOfUltrasoundRegions",
    "ImagerPixelSpacing",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PixelSpacing",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "WindowCenter",
    "WindowWidth",
    "RescaleIntercept",
    "RescaleSlope",
    "VOILUTFunction",
    *(
        f"{prefix}{colour}PaletteColorLookupTable{part}"
        for colour in ("Red", "Green", "Blue")
        for prefix, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
    ),
    "ModalityLUTSequence",
    "VOILUTSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    *PIXELS,
]
PIXEL_TAGS = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")  # (7FE0,0010) in both byte orders
# GDCM ends the whole process on some damaged streams: it serves only the one family
# that nothing else here decodes.
SAFE_PLUGINS = ("pylibjpeg", "pyjpegls", "pydicom", "pillow")
LOSSLESS_PLUGINS = ("pylibjpeg", "gdcm")
DEFLATED = 1 << 16  # bytes inflated at a time
CENTIMETRES = 3  # of PhysicalUnitsXDirection


def is_dicom(data: bytes) -> bool:
    """Whether ``data`` is a DICOM file, by its magic bytes after the preamble."""
    return data[128:132] == b"DICM"


def read_dicom(data: bytes, limits: Limits) -> tuple[np.ndarray, Grid]:
    """Decode a DICOM file as displayed: modality and VOI transformed, MONOCHROME1 inverted.

    Returns:
        frames uint8 (F, H, W, 3) and the grid.
    """
    try:
        ds = _parse(data, limits)
        count = _check_header(ds, data, limits)
        plugin = _choose_decoder(ds)
        if ds.file_meta.TransferSyntaxUID.is_encapsulated:
            _check_streams(ds, count)
        stored = _decode(ds, data, plugin, count)
        check_values(stored)
        pixels = _show(stored, ds)
        return as_frames(pixels), Grid("dicom", spacing=_spacing(ds))
    except (InputError, BackendError, MemoryError):
        raise
    except Exception as exc:  # decoders and odd elements may raise anything
        raise refuse(
            "unreadable",
            f"expected a valid DICOM image, got damaged content ({type(exc).__name__})",
        ) from exc


def _parse(data: bytes, limits: Limits) -> Dataset:
    stream = io.BytesIO(data)
    stream.seek(132)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    if not meta.get("TransferSyntaxUID"):
        raise refuse("unreadable", "expected a transfer syntax in the DICOM header, got none")
    if meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
        _check_deflated(stream.read(), limits)
    ds = dcmread(io.BytesIO(data), specific_tags=list(ELEMENTS))
    for element in list(ds):
        if element.is_empty:
            del ds[element.tag]
    return ds


def _check_deflated(data: bytes, limits: Limits) -> None:
    """Inflate once without keeping anything: pydicom itself has no limit."""
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    for start in range(0, len(data), DEFLATED):
        part = data[start : start + DEFLATED]
        while part and not inflater.eof:
            size += len(inflater.decompress(part, 1 << 20))
            limits.check_bytes(size)
            part = inflater.unconsumed_tail
    inflater.flush()
    if not inflater.eof:
        raise refuse("truncated", "expected a whole deflated DICOM file, got only a part")


def _check_header(ds: Dataset, data: bytes, limits: Limits) -> int:
    """The number of frames, after everything that the header alone can tell."""
    present = [keyword for keyword in PIXELS if keyword in ds]
    if not present:
        # pydicom drops an element, or all of them, where the file ends too early.
        if any(tag in data for tag in PIXEL_TAGS) and ("Rows" in ds or not len(ds)):
            raise refuse("truncated", "expected pixels up to their end mark, got only a part")
        raise refuse(
            "no-pixels",
            "expected a DICOM image, got an object without pixel data or the beginning of one",
        )
    count = int(ds.get("NumberOfFrames") or 1)
    limits.check_pixels(count, int(ds.get("Rows", 0)), int(ds.get("Columns", 0)))
    samples, kind = int(ds.get("SamplesPerPixel", 1)), str(ds.get("PhotometricInterpretation"))
    known = {1: ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"), 3: ("RGB",)}.get(samples, ())
    if kind not in known and not (samples == 3 and kind.startswith("YBR_")):
        raise refuse("unsupported", f"expected grey, RGB or YBR pixels, got {samples} × {kind}")
    if not ds.file_meta.TransferSyntaxUID.is_encapsulated:
        bits = samples * int(ds.BitsAllocated) * count * int(ds.Rows) * int(ds.Columns)
        if kind == "YBR_FULL_422":
            bits = bits // 3 * 2
        got = len(ds[present[0]].value)
        if got < bits // 8:
            raise refuse("truncated", f"expected {bits // 8} bytes of pixels, got {got}")
    return count


def _choose_decoder(ds: Dataset) -> str:
    """The pydicom plug-in for this transfer syntax; empty for uncompressed pixels."""
    syntax = ds.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return ""
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as exc:
        raise refuse("unsupported", f"no decoder exists for {syntax.name}") from exc
    plugins = LOSSLESS_PLUGINS if syntax in (JPEGLossless, JPEGLosslessSV1) else SAFE_PLUGINS
    usable = {*decoder.available_plugins, *(["gdcm"] if HAVE_GDCM else [])}
    found = [plugin for plugin in plugins if plugin in usable]
    if syntax == JPEGExtended12Bit and int(ds.BitsStored) > 8:  # Pillow reads 8 bits of it
        found = [plugin for plugin in found if plugin != "pillow"]
    if not found:
        needs = sorted({text.split("requires ")[-1] for text in decoder.missing_dependencies})
        raise refuse(
            "unsupported",
            f"{syntax.name} with {ds.BitsStored} bits needs a package: {' or '.join(needs)}",
        )
    return found[0]


def _check_streams(ds: Dataset, count: int) -> None:
    """Refuse compressed frames that are missing, cut off, or of another size than declared.

    Decoders fill the rest of a picture that is cut off with grey, and a frame may claim
    more pixels than the header that the limits were checked against.
    """
    offsets = None
    if "ExtendedOffsetTable" in ds and "ExtendedOffsetTableLengths" in ds:
        offsets = (ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths)
    streams = generate_frames(ds.PixelData, number_of_frames=count, extended_offsets=offsets)
    got = 0
    for stream in islice(streams, count):
        got += 1
        if ds.file_meta.TransferSyntaxUID == RLELossless:
            continue
        size = stream_size(stream)
        if size is not None and size != (ds.Rows, ds.Columns):
            raise refuse(
                "unreadable",
                f"expected frames of {ds.Rows} × {ds.Columns}, got one of {size[0]} × {size[1]}",
            )
        if stream.rfind(b"\xff\xd9", max(0, len(stream) - 64)) < 0:
            raise refuse("truncated", f"expected frame {got} up to its end mark, got only a part")
    if got < count:
        raise refuse("truncated", f"expected {count} frames, got {got}")


def stream_size(stream: bytes) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG, JPEG-LS or JPEG 2000 stream declares, where it does."""
    start = stream.find(b"\xff\x4f\xff\x51", 0, 4096)  # JPEG 2000, bare or in a JP2 box
    if start >= 0:
        width, height, left, top = struct.unpack_from(">4I", stream, start + 8)
        return height - top, width - left
    at = 2
    while stream.startswith(b"\xff\xd8") and at + 9 <= len(stream):
        marker = stream[at + 1]
        if stream[at] != 0xFF:
            return None
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = struct.unpack_from(">2H", stream, at + 5)
            return rows, columns
        else:
            at += 2 + struct.unpack_from(">H", stream, at + 2)[0]
    return None


def _decode(ds: Dataset, data: bytes, plugin: str, count: int) -> np.ndarray:
    """Stored values (F, H, W), or (F, H, W, 3) in RGB."""
    apart = plugin == "gdcm"
    stored = DECODER.decode(data) if apart else pixel_array(ds, decoding_plugin=plugin)
    samples = (3,) if ds.get("SamplesPerPixel", 1) == 3 else ()
    # Streams may hold more frames than the header declares; fewer do not come here.
    return stored.reshape(-1, int(ds.Rows), int(ds.Columns), *samples)[:count]


def _show(stored: np.ndarray, ds: Dataset) -> np.ndarray:
    """uint8 (F, H, W) or (F, H, W, 3) as displayed."""
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        coloured = [apply_color_lut(frame, ds) for frame in stored]
        return np.stack([_to_bytes(frame, 8 * frame.itemsize) for frame in coloured])
    if stored.ndim == 4:
        return _to_bytes(stored, int(ds.BitsStored))
    return show_grey(stored, ds)


def _to_bytes(colour: np.ndarray, bits: int) -> np.ndarray:
    """uint8 of unsigned colour samples of ``bits`` bits."""
    return colour.astype(np.uint8) if bits <= 8 else (colour >> (bits - 8)).astype(np.uint8)


def _spacing(ds: Dataset) -> tuple[float, float] | None:
    """(row, column) distance in mm from whatever the object tells, or None."""
    value = functional(ds, 0, "PixelMeasuresSequence").get("PixelSpacing")
    value = value or ds.get("ImagerPixelSpacing")
    regions = ds.get("SequenceOfUltrasoundRegions") or []
    if not value and len(regions) == 1 and _in_centimetres(regions[0]):
        region = regions[0]
        value = [abs(10.0 * region.PhysicalDeltaY), abs(10.0 * region.PhysicalDeltaX)]
    try:
        row, column = (float(v) for v in value)
    except (TypeError, ValueError):
        return None
    return (row, column) if 0 < row < np.inf and 0 < column < np.inf else None


def _in_centimetres(region: Dataset) -> bool:
    axes = (region.get(f"PhysicalUnits{axis}Direction") for axis in "XY")
    deltas = (region.get(f"PhysicalDelta{axis}") for axis in "XY")
    return all(axis == CENTIMETRES for axis in axes) and None not in deltas
