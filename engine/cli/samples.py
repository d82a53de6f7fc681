"""A known picture in every format, for ``medclipsam doctor``: do decode processes show it?"""

import io
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import numpy as np

PICTURE = np.arange(8 * 12, dtype=np.uint16).reshape(8, 12) * 600
SMOOTH = (PICTURE >> 8).astype(np.uint8)
JPEG_LOSSLESS = (  # PICTURE, by imagecodecs' ljpeg_encode
    "ffd8ffc4001700010101010000000000000000000000000c0a0d10ffc3000b100008000c01001100ffda00080100"
    "00060000ea58a58a58a58a58a58a58a58a58a58a58dc207083841c20e107083841c20e107083841c21b840e107083"
    "841c20e107083841c20e1070838437081c20e107083841c20e107083841c20e107086e103841c20e107083841c20e"
    "107083841c20e10dc207083841c20e107083841c20e107083841c21b840e107083841c20e107083841c20e107083"
    "8437081c20e107083841c20e107083841c20e1070800ffd9"
)
NEAR, LOSSY = 2, 20  # levels of 255: between two ways to the same window, and of JPEG


def decoder_checks() -> Iterator[tuple[str, Callable[[], str], str]]:
    """(format, probe, packages that decode it); a probe gives versions, or raises."""
    for name, packages, make in (
        ("PNG, 16 bits", "pillow imagecodecs", lambda: _saved("PNG", PICTURE)),
        ("JPEG", "pillow", lambda: _saved("JPEG", SMOOTH)),
        ("TIFF", "tifffile imagecodecs", lambda: _saved("TIFF", PICTURE, compression="tiff_lzw")),
        ("DICOM", "pydicom", lambda: _dicom("ExplicitVRLittleEndian")),
        ("DICOM JPEG 2000", "pylibjpeg pylibjpeg-openjpeg", _jpeg_2000),
        ("DICOM JPEG-LS", "pyjpegls", lambda: _dicom("JPEGLSLossless")),
        ("DICOM RLE", "pylibjpeg pylibjpeg-rle", lambda: _dicom("RLELossless")),
        ("DICOM JPEG Lossless", "python-gdcm", _jpeg_lossless),
        ("NIfTI", "nibabel", _nifti),
    ):
        yield name, _probe(name, packages, make), packages


def _probe(name: str, packages: str, make: Callable[[], bytes]) -> Callable[[], str]:
    def probe() -> str:
        from medclipsam.engine.archive import Decoders, Entry
        from medclipsam.engine.types import ItemRef

        with Decoders(1) as decoders:
            shown = decoders.decode(Entry(ItemRef("x"), fetch=make)).frames[0, :, :, 0]
        expected = PICTURE * (255 / PICTURE.max())
        if name == "NIfTI":  # is shown as it lies in the body
            expected = expected[::-1, ::-1]
        compare(name, _stretched(shown), expected, LOSSY if name == "JPEG" else NEAR)
        return ", ".join(f"{package} {version(package)}" for package in packages.split())

    return probe


def _stretched(shown: np.ndarray) -> np.ndarray:
    low, high = float(shown.min()), float(shown.max())
    return (shown - low) * (255 / max(high - low, 1))


def _saved(form: str, picture: np.ndarray, **options: Any) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, form, **options)
    return stream.getvalue()


def _jpeg_2000() -> bytes:  # by another encoder than that of the plug-in
    code = _saved("JPEG2000", PICTURE, no_jp2=True, irreversible=False)
    return _dicom("JPEG2000Lossless", code)


def _jpeg_lossless() -> bytes:
    return _dicom("JPEGLosslessSV1", bytes.fromhex(JPEG_LOSSLESS))


def _dicom(syntax: str, code: bytes | None = None) -> bytes:
    """PICTURE in a transfer syntax, which pydicom compresses where ``code`` is not given."""
    import medclipsam.engine.archive.readers.dicom  # noqa: F401, I001 - before pydicom: hides GDCM
    from pydicom import uid
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate

    data, name = Dataset(), getattr(uid, syntax)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = name if code else uid.ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    data.Rows, data.Columns = PICTURE.shape
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.PhotometricInterpretation = "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelData = encapsulate([code]) if code else PICTURE.tobytes()
    if code is None and name.is_compressed:
        data.compress(name)
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _nifti() -> bytes:
    import nibabel

    return nibabel.Nifti1Image(PICTURE.T[:, :, None], np.eye(4)).to_bytes()


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
