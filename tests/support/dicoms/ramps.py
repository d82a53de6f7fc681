"""DICOM objects around a ramp, plain or compressed, and how they are shown or refused."""

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from reading import read_dicom_anywhere

from medclipsam.engine.archive.limits import Limits
from medclipsam.engine.errors import InputError

LIMITS = Limits()
SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"
ROUNDING = 1  # grey levels: two ways to the same window may round apart
LOSSLESS = (uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.JPEGLosslessSV1)
HEIGHT, WIDTH = 24, 20
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
RAMP = (ROWS * 150 + COLUMNS * 11).astype(np.uint16)  # 12 bits
NOISE = np.random.default_rng(3).integers(0, 4096, (HEIGHT, WIDTH), np.uint16)


def dataset(pixels: np.ndarray, bits: int = 12, **elements) -> Dataset:
    """A Secondary Capture object around (H, W), (F, H, W) or (H, W, 3) pixels."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = uid.SecondaryCaptureImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = uid.generate_uid()
    ds.PatientName = "Secret^Patient"
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    ds.SamplesPerPixel = 3 if colour else 1
    ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        ds.PlanarConfiguration = 0
    elif pixels.ndim == 3:
        ds.NumberOfFrames = len(pixels)
    ds.Rows, ds.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    ds.BitsAllocated = 8 * pixels.itemsize
    ds.BitsStored = bits
    ds.HighBit = bits - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    data = pixels.tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


def to_bytes(ds: Dataset) -> bytes:
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def shown(source: Dataset | bytes) -> np.ndarray:
    data = source if isinstance(source, bytes) else to_bytes(source)
    frames, grid = read_dicom_anywhere(data, LIMITS)
    assert grid.kind == "dicom" and frames.dtype == np.uint8 and frames.shape[-1] == 3
    return frames


def refused(source: Dataset | bytes, limits: Limits = LIMITS) -> tuple[str, str]:
    data = source if isinstance(source, bytes) else to_bytes(source)
    with pytest.raises(InputError) as caught:
        read_dicom_anywhere(data, limits)
    assert caught.value.stage == "read_image"
    assert "Secret" not in str(caught.value)
    return caught.value.reason, str(caught.value)


def compressed(ds: Dataset, syntax: uid.UID, folder: Path) -> bytes:
    """``ds`` in a lossless syntax: by pydicom where it can, else by gdcm."""
    if syntax in (uid.RLELossless, uid.JPEGLSLossless):
        copy = pydicom.dcmread(io.BytesIO(to_bytes(ds)))
        copy.compress(syntax)
        return to_bytes(copy)
    import gdcm

    (folder / "plain.dcm").write_bytes(to_bytes(ds))
    reader, change, writer = (
        gdcm.ImageReader(),
        gdcm.ImageChangeTransferSyntax(),
        gdcm.ImageWriter(),
    )
    reader.SetFileName(str(folder / "plain.dcm"))
    assert reader.Read()
    number = gdcm.TransferSyntax.GetTSType(str.__str__(syntax))
    change.SetTransferSyntax(gdcm.TransferSyntax(number))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(folder / "compressed.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return (folder / "compressed.dcm").read_bytes()
