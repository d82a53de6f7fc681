"""DICOM objects around known cells, in every syntax, and how they are shown."""

import io

import imagecodecs
import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_encoder
from reading import read_dicom_anywhere

from medclipsam.engine.archive.limits import Limits
from medclipsam.engine.errors import InputError

ROUNDING = 1
HEIGHT, WIDTH = 23, 30
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
VALUES = (ROWS * 150 + COLUMNS * 19).astype(np.uint16)  # 12 bits
GREY = (ROWS * 7 + COLUMNS * 3).astype(np.uint8)
WINDOW = {"WindowCenter": 1500, "WindowWidth": 2000}
NATIVE = uid.ExplicitVRLittleEndian
SYNTAXES = (
    NATIVE,
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.RLELossless,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
    uid.JPEGLosslessSV1,
)


def windowed(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1 in float64."""
    share = (values.astype(float) - (center - 0.5)) / (width - 1) + 0.5
    return np.rint(np.clip(share, 0, 1) * 255)


def robust(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, (0.5, 99.5))
    return np.rint(np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255)


SHOWN = windowed(VALUES, 1500, 2000)


def compress(cells: np.ndarray, syntax: str, bits: int = 16) -> bytes:
    """One frame of uint8 or uint16 cells in a stream of ``bits`` bits."""
    if syntax == uid.RLELossless:
        found = get_encoder(syntax).encode(
            cells.tobytes(), rows=cells.shape[0], columns=cells.shape[1], number_of_frames=1,
            samples_per_pixel=1, bits_allocated=8 * cells.itemsize,
            bits_stored=8 * cells.itemsize, pixel_representation=0,
            photometric_interpretation="MONOCHROME2", encoding_plugin="pydicom",
        )  # fmt: skip
        return bytes(found)
    if syntax == uid.JPEGLSLossless:
        return imagecodecs.jpegls_encode(cells)
    if syntax == uid.JPEG2000Lossless:
        return imagecodecs.jpeg2k_encode(
            cells, level=0, codecformat="j2k", reversible=True, bitspersample=bits
        )
    return imagecodecs.ljpeg_encode(cells, bitspersample=bits)


def save(ds: Dataset) -> bytes:
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def dicom(*args, **elements) -> bytes:
    return save(dataset(*args, **elements))


def dataset(
    cells: np.ndarray, syntax: str = NATIVE, frames: list[bytes] | None = None, **elements
) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = uid.SecondaryCaptureImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.3"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = cells.shape[-2:]
    if cells.ndim == 3:
        ds.NumberOfFrames = len(cells)
    ds.BitsAllocated = 8 * cells.itemsize
    ds.BitsStored = 12 if cells.itemsize == 2 else 8
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, 0
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    if uid.UID(syntax).is_encapsulated:
        pages = cells if cells.ndim == 3 else cells[None]
        ds.PixelData = encapsulate(frames or [compress(page, syntax) for page in pages])
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    else:
        big = syntax == uid.ExplicitVRBigEndian
        ordered = cells.astype(cells.dtype.newbyteorder(">" if big else "<"))
        ds.PixelData = b"".join(frames) if frames else ordered.tobytes()
        ds.PixelData += b"\0" * (len(ds.PixelData) % 2)
        ds["PixelData"].VR = "OW" if cells.itemsize == 2 else "OB"
    return ds


def shown(data: bytes) -> np.ndarray:
    frames, _ = read_dicom_anywhere(data, Limits())
    return frames


def refused(data: bytes) -> tuple[str, str]:
    with pytest.raises(InputError) as caught:
        read_dicom_anywhere(data, Limits())
    return caught.value.reason, str(caught.value)


def check(data: bytes, wanted: np.ndarray) -> None:
    found = shown(data)[0, ..., 0].astype(int)
    assert np.abs(found - wanted).max() <= ROUNDING
