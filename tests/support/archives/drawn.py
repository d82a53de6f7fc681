"""Pictures, DICOM objects, volumes and containers as bytes, drawn anew and stored nowhere."""

import io
import struct
import tarfile
import zlib

import nibabel
import numpy as np
import tifffile
from PIL import Image as PillowImage
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset

SIDE = 48
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]
NOISE = np.random.default_rng(17).integers(0, 256, (SIDE, SIDE), np.uint8)
GREY = (ROWS * 2 + COLUMNS * 3).astype(np.uint8)
COLOUR = np.dstack([GREY, NOISE, 255 - GREY])


def picture(pixels: np.ndarray, kind: str = "PNG", mode: str | None = None, **options) -> bytes:
    stream = io.BytesIO()
    image = PillowImage.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, kind, **options)
    return stream.getvalue()


def dicom(pixels: np.ndarray, syntax: str = uid.ExplicitVRLittleEndian, **elements) -> bytes:
    """A Secondary Capture object around (H, W) or (F, H, W) uint16 pixels of 12 bits."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = uid.SecondaryCaptureImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = "1.2.3"
    ds.PatientName = "Secret^Patient"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    if pixels.ndim == 3:
        ds.NumberOfFrames = len(pixels)
    ds.Rows, ds.Columns = pixels.shape[-2:]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = pixels.astype("<u2").tobytes()
    ds["PixelData"].VR = "OW"
    for keyword, value in elements.items():
        if value is None:
            ds.pop(keyword, None)
        else:
            setattr(ds, keyword, value)
    if syntax == uid.MPEG2MPML:
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
        ds.PixelData = b"\xfe\xff\x00\xe0\0\0\0\0" + b"\xfe\xff\x00\xe0\x04\0\0\0abcd"
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def tiff(pixels: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    options = {"photometric": "rgb" if 3 in pixels.shape[::2] else "minisblack", **options}
    tifffile.imwrite(stream, pixels, metadata=None, **options)
    return stream.getvalue()


def deep_colour() -> np.ndarray:
    return np.dstack([deep(), deep()[::-1], deep().T])


def nifti(voxels: np.ndarray) -> bytes:
    return nibabel.Nifti1Image(voxels, np.diag([1.0, 1.0, 4.0, 1.0])).to_bytes()


def png(width: int, height: int, depth: int, pixels: bytes, *extra: bytes) -> bytes:
    """A PNG of any header and content."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    head = chunk(b"IHDR", struct.pack(">2I5B", width, height, depth, 0, 0, 0, 0))
    more = b"".join(chunk(b"zTXt", b"k\0\0" + text) for text in extra)
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def zeros(size: int, wbits: int) -> bytes:
    """A stream that inflates to ``size`` MiB of zeros, put together from equal blocks."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    first = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    second = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + second * (size - 1) + packer.flush()


def tar(members: dict[str, bytes], mode: str = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def volume() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 900, (12, 10, 6)).astype(np.int16)


def deep() -> np.ndarray:
    return (GREY.astype(np.uint16) * 13 + NOISE).astype(np.uint16)
