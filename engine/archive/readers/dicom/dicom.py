"""DICOM images, read by pydicom.

Only the elements named in ``ELEMENTS`` are parsed: what identifies a patient is never
looked at, so it cannot reach a result, a message or a log.
"""

import io
from dataclasses import dataclass

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
)

from medclipsam.engine.archive.limits import Limits, refuse
from medclipsam.engine.archive.readers.dicom import HAVE_GDCM
from medclipsam.engine.archive.readers.dicom.bits import AS_STORED, stored_values
from medclipsam.engine.archive.readers.dicom.file import complete, read_syntax
from medclipsam.engine.archive.readers.dicom.geometry import Planes, make_affine, read_planes
from medclipsam.engine.archive.readers.dicom.grayscale import show_grey
from medclipsam.engine.archive.readers.dicom.lossless import decode_lossless
from medclipsam.engine.archive.readers.dicom.palette import show_palette
from medclipsam.engine.archive.readers.dicom.spacing import read_aspect, read_spacing
from medclipsam.engine.archive.readers.dicom.streams import check_streams
from medclipsam.engine.archive.readers.dicom.syntax import check_deflated, check_syntax
from medclipsam.engine.archive.readers.window import as_frames, check_finite, is_constant
from medclipsam.engine.errors import BackendError, InputError
from medclipsam.engine.types import Grid

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
ELEMENTS = [
    "SOPClassUID",
    "SequenceOfUltrasoundRegions",
    "ImagerPixelSpacing",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "NominalScannedPixelSpacing",
    "PixelAspectRatio",
    "GridFrameOffsetVector",
    "DetectorInformationSequence",
    "FrameIncrementPointer",
    "SliceVector",
    "RotationVector",
    "AngularViewVector",
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
CELLS = (1, 8, 16, 32, 64)  # bits of a cell
NO_SPACING, NO_DEPTH = "the file tells no pixel spacing", "the file tells no slice thickness"


@dataclass(frozen=True)
class Picture:
    """What one DICOM file shows and where that lies.

    Attributes:
        pixels: uint8 (F, H, W) or (F, H, W, 3) as displayed.
        constant: whether all stored values are the same, as in air beside a body.
        spacing: (row, column) distance of pixel centres in mm, where the file tells.
        aspect: row distance divided by column distance, where only that is told.
        planes: of its frames in space, or what is unknown of them.
    """

    pixels: np.ndarray
    constant: bool
    spacing: tuple[float, float] | None
    aspect: float
    planes: Planes | str


def read_dicom(data: bytes, limits: Limits) -> tuple[np.ndarray, Grid]:
    """Decode a DICOM file as displayed: modality and VOI transformed, MONOCHROME1 inverted.

    Returns:
        frames uint8 (F, H, W, 3) and the grid.
    """
    picture = read_picture(data, limits)
    if picture.constant:
        raise refuse("constant", "expected a picture, got the same value in every pixel")
    frames = as_frames(picture.pixels)
    return frames, make_grid(frames, picture, picture.planes)


def make_grid(frames: np.ndarray, picture: Picture, planes: Planes | str) -> Grid:
    """The grid of frames (F, H, W, 3): with shape (W, H, F) and affine where they lie evenly.

    A single frame that tells its pixel spacing, but no position, is a picture and in no doubt.

    Args:
        picture: the file of the first frame.
        planes: of all frames, or what is unknown of them.
    """
    affine = planes if isinstance(planes, str) else make_affine(planes)
    spacing, aspect = picture.spacing, picture.aspect
    if not isinstance(planes, str) and not isinstance(affine, str):
        doubt = NO_DEPTH if len(frames) == 1 and planes.depth is None else ""
        shape = frames.shape[2::-1]
        return Grid("dicom", spacing=spacing, affine=affine, shape=shape, doubt=doubt)
    doubt = str(affine)
    if spacing is None:
        doubt = NO_SPACING
    elif len(frames) == 1:
        doubt = ""
    return Grid("dicom", spacing=spacing, aspect=aspect, doubt=doubt)


def read_picture(data: bytes, limits: Limits) -> Picture:
    """Decode one file, even if it shows nothing, as one slice of a series may."""
    try:
        data = complete(data)
        ds = _parse(data, limits)
        count = _check_header(ds, data, limits)
        plugin = _choose_decoder(ds)
        packed = ds.file_meta.TransferSyntaxUID.is_encapsulated
        held = check_streams(ds, count) if packed else int(ds.BitsAllocated)
        stored = stored_values(_decode(ds, data, plugin, count), ds, held)
        check_finite(stored)
        pixels, planes = _show(stored, ds), read_planes(ds, len(stored))
        return Picture(pixels, is_constant(stored), read_spacing(ds), read_aspect(ds), planes)
    except (InputError, BackendError, MemoryError):
        raise
    except Exception as exc:  # decoders and odd elements may raise anything
        raise refuse(
            "unreadable",
            f"expected a valid DICOM image, got damaged content ({type(exc).__name__})",
        ) from exc


def _parse(data: bytes, limits: Limits) -> Dataset:
    stream = io.BytesIO(data)
    syntax = read_syntax(stream)
    check_syntax(syntax)
    if syntax == DeflatedExplicitVRLittleEndian:
        check_deflated(stream.read(), limits)
    ds = dcmread(io.BytesIO(data), specific_tags=list(ELEMENTS))
    for element in list(ds):
        if element.is_empty:
            del ds[element.tag]
    return ds


def _check_header(ds: Dataset, data: bytes, limits: Limits) -> int:
    """The number of frames, after everything that the header alone can tell."""
    present = [keyword for keyword in PIXELS if keyword in ds]
    if not present:
        # pydicom drops an element, or all of them, where the file ends too early.
        if any(tag in data for tag in PIXEL_TAGS) and ("Rows" in ds or not len(ds)):
            raise refuse("truncated", "expected pixels up to their end mark, got only a part")
        raise refuse("no-pixels", f"expected a DICOM image, got {_name_class(ds)}")
    count = int(ds.get("NumberOfFrames") or 1)
    limits.check_pixels(count, int(ds.get("Rows", 0)), int(ds.get("Columns", 0)))
    samples, kind = int(ds.get("SamplesPerPixel", 1)), str(ds.get("PhotometricInterpretation"))
    known = {1: ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"), 3: ("RGB",)}.get(samples, ())
    if kind not in known and not (samples == 3 and kind.startswith("YBR_")):
        raise refuse("unsupported", f"expected grey, RGB or YBR pixels, got {samples} × {kind}")
    if int(ds.BitsAllocated) not in CELLS:
        raise refuse("unsupported", f"expected cells of {CELLS} bits, got {ds.BitsAllocated}")
    if not ds.file_meta.TransferSyntaxUID.is_encapsulated:
        if ds[present[0]].is_undefined_length:
            raise refuse(
                "unsupported",
                "expected plain pixels, got compressed ones without a transfer syntax that tells "
                "how; save the file again with a whole header",
            )
        bits = samples * int(ds.BitsAllocated) * count * int(ds.Rows) * int(ds.Columns)
        if kind == "YBR_FULL_422":
            bits = bits // 3 * 2
        got = len(ds[present[0]].value)
        if got < bits // 8:
            raise refuse("truncated", f"expected {bits // 8} bytes of pixels, got {got}")
    return count


def _name_class(ds: Dataset) -> str:
    """What an object without pixels is."""
    found = UID(str(ds.file_meta.get("MediaStorageSOPClassUID") or ds.get("SOPClassUID") or ""))
    if not found.is_valid or not found:
        return "an object of no SOP class and without pixel data, or the beginning of one"
    name = found if found.name == found else f"{found.name} ({found})"
    return f"an object of SOP class {name} without pixel data, or the beginning of one"


def _choose_decoder(ds: Dataset) -> str:
    """The pydicom plug-in for this transfer syntax; empty for uncompressed pixels."""
    syntax = ds.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return ""
    decoder = get_decoder(syntax)
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


def _decode(ds: Dataset, data: bytes, plugin: str, count: int) -> np.ndarray:
    """Stored cells (F, H, W), or (F, H, W, 3) in RGB; see ``bits`` for what a value is."""
    try:
        if plugin == "gdcm":
            cells = decode_lossless(data)
        else:
            cells = pixel_array(ds, decoding_plugin=plugin, **AS_STORED)
    except BaseException as exc:
        if type(exc).__name__ != "PanicException":  # of Rust, in pylibjpeg-rle: no Exception
            raise
        raise refuse("unreadable", "expected intact compressed pixels, got damaged ones") from exc
    samples = (3,) if ds.get("SamplesPerPixel", 1) == 3 else ()
    # Streams may hold more frames than the header declares; fewer do not come here.
    return cells.reshape(-1, int(ds.Rows), int(ds.Columns), *samples)[:count]


def _show(stored: np.ndarray, ds: Dataset) -> np.ndarray:
    """uint8 (F, H, W) or (F, H, W, 3) as displayed."""
    if ds.PhotometricInterpretation == "PALETTE COLOR":
        return show_palette(stored, ds)
    if stored.ndim == 4:
        return _to_bytes(stored, int(ds.BitsStored))
    return show_grey(stored, ds)


def _to_bytes(colour: np.ndarray, bits: int) -> np.ndarray:
    """uint8 of unsigned colour samples of ``bits`` bits."""
    return colour.astype(np.uint8) if bits <= 8 else (colour >> (bits - 8)).astype(np.uint8)
