"""A known picture in every format, for ``medclipsam doctor``: does its decoder give it back?"""

from __future__ import annotations

import io
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PICTURE = np.arange(8 * 12, dtype=np.uint16).reshape(8, 12) * 600


def _pillow(
    form: str, picture: np.ndarray, tolerance: int = 0, **options: str
) -> Callable[[], str]:
    def probe() -> str:
        import PIL
        from PIL import Image

        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, form, **options)
        with Image.open(io.BytesIO(stream.getvalue()), formats=[form]) as image:
            compare(form, np.asarray(image), picture, tolerance)
        return f"pillow {PIL.__version__}"

    return probe


def _dicom(syntax: str) -> Callable[[], str]:
    """Write a 16-bit DICOM object in the transfer syntax ``syntax`` and read it back."""

    def probe() -> str:
        import_module("medclipsam.engine.archive.readers.dicom")  # before pydicom: it hides GDCM
        from pydicom import dcmread, uid
        from pydicom.encaps import encapsulate
        from pydicom.pixels import get_decoder

        name = getattr(uid, syntax)
        data = _dicom_object()
        if name == uid.JPEG2000Lossless:  # by another encoder than that of the plug-in
            data.PixelData = encapsulate([_jpeg_2000()])
            data.file_meta.TransferSyntaxUID = name
        elif name.is_compressed:
            data.compress(name)
        read = dcmread(io.BytesIO(_to_bytes(data)))
        if read.file_meta.TransferSyntaxUID != name:
            raise RuntimeError(f"expected {name.name}, got {read.file_meta.TransferSyntaxUID}")
        compare(name.name, read.pixel_array, PICTURE)
        plugins = getattr(get_decoder(name), "available_plugins", ())
        through = f" through {', '.join(plugins)}" if plugins else ""
        return f"pydicom {version('pydicom')}{through}"

    return probe


def _jpeg_2000() -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(PICTURE).save(stream, "JPEG2000", no_jp2=True, irreversible=False)
    return stream.getvalue()


def _dicom_object() -> Dataset:
    from pydicom import uid
    from pydicom.dataset import Dataset, FileMetaDataset

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    data.Rows, data.Columns = PICTURE.shape
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit = 15
    data.PixelRepresentation = 0
    data.PixelData = PICTURE.tobytes()
    return data


def _to_bytes(data: Dataset) -> bytes:
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _nifti() -> str:
    import nibabel

    voxels = PICTURE.reshape(4, 8, 3)
    data = nibabel.Nifti1Image(voxels, np.eye(4)).to_bytes()
    read = nibabel.Nifti1Image.from_bytes(data)
    compare("a NIfTI volume", np.asarray(read.dataobj), voxels)
    return f"nibabel {nibabel.__version__}"


def _gdcm() -> str:
    from pydicom import uid
    from pydicom.encaps import encapsulate

    from medclipsam.engine.archive import Decoders, Entry
    from medclipsam.engine.types import ItemRef

    data = _dicom_object()
    data.file_meta.TransferSyntaxUID = uid.JPEGLosslessSV1
    data.PixelData = encapsulate([bytes.fromhex(JPEG_LOSSLESS)])
    with Decoders(1) as decoders:
        frames = decoders.decode(Entry(ItemRef("x"), fetch=lambda: _to_bytes(data))).frames
    shown = PICTURE * (255 / PICTURE.max())
    compare("JPEG Lossless", frames[0, :, :, 0], shown, tolerance=2)
    return f"python-gdcm {version('python-gdcm')}, in a decode process"


JPEG_LOSSLESS = (  # PICTURE, by imagecodecs' ljpeg_encode
    "ffd8ffc4001700010101010000000000000000000000000c0a0d10ffc3000b100008000c01001100ffda00080100"
    "00060000ea58a58a58a58a58a58a58a58a58a58a58dc207083841c20e107083841c20e107083841c21b840e107083"
    "841c20e107083841c20e1070838437081c20e107083841c20e107083841c20e107086e103841c20e107083841c20e"
    "107083841c20e10dc207083841c20e107083841c20e107083841c21b840e107083841c20e107083841c20e107083"
    "8437081c20e107083841c20e107083841c20e1070800ffd9"
)
SMOOTH = (PICTURE >> 8).astype(np.uint8)
DECODERS: tuple[tuple[str, Callable[[], str], str], ...] = (
    ("PNG, 16 bits", _pillow("PNG", PICTURE), "pillow"),
    ("JPEG", _pillow("JPEG", SMOOTH, tolerance=16), "pillow"),
    ("TIFF", _pillow("TIFF", PICTURE, compression="tiff_lzw"), "pillow"),  # needs libtiff
    ("DICOM", _dicom("ExplicitVRLittleEndian"), "pydicom"),
    ("DICOM JPEG 2000", _dicom("JPEG2000Lossless"), "pylibjpeg pylibjpeg-openjpeg"),
    ("DICOM JPEG-LS", _dicom("JPEGLSLossless"), "pyjpegls"),
    ("DICOM RLE", _dicom("RLELossless"), "pylibjpeg pylibjpeg-rle"),
    ("DICOM JPEG Lossless", _gdcm, "python-gdcm"),
    ("NIfTI", _nifti, "nibabel"),
)


def compare(what: str, got: np.ndarray, expected: np.ndarray, tolerance: float = 0) -> None:
    """Refuse a result that is off by more than ``tolerance``.

    Raises:
        RuntimeError: says by how much.
    """
    if got.shape != expected.shape:
        raise RuntimeError(f"{what} came out as {got.shape}, expected {expected.shape}")
    worst = float(np.abs(got.astype(np.float64) - expected).max())
    if not worst <= tolerance:
        raise RuntimeError(f"{what} came out wrong, by up to {worst:g}")
