"""Kinds that are not read: each is called by its name, made by a library that writes it."""

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile

import imagecodecs
import nibabel
import numpy as np
import pytest
import SimpleITK
from PIL import Image as PillowImage

from medclipsam.engine.archive.limits import Limits
from medclipsam.engine.archive.readers.foreign import foreign_kind
from medclipsam.engine.archive.readers.raster import read_raster
from medclipsam.engine.archive.readers.reader import decode
from medclipsam.engine.errors import InputError

ROWS, COLUMNS = np.mgrid[:40, :56]
GREY = (ROWS * 3 + COLUMNS * 2).astype(np.uint8)
DEEP = (ROWS * 60 + COLUMNS * 20).astype(np.uint16)
VOLUME = np.random.default_rng(5).integers(0, 900, (12, 10, 6)).astype(np.int16)
AFFINE = np.diag([1.5, 1.5, 4.0, 1.0])


def pillow(kind: str, **options) -> bytes:
    stream = io.BytesIO()
    PillowImage.fromarray(GREY).save(stream, kind, **options)
    return stream.getvalue()


def itk(suffix: str, folder) -> bytes:
    path = folder / f"a{suffix}"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(VOLUME), str(path))
    return path.read_bytes()


def pair(cls, name: str) -> bytes:
    image = cls(VOLUME, AFFINE)
    files = cls.make_file_map({key: io.BytesIO() for key in ("header", "image")})
    image.to_file_map(files)
    return files[name].fileobj.getvalue()


def tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        info = tarfile.TarInfo("a.png")
        info.size = 10
        file.addfile(info, io.BytesIO(bytes(10)))
    return stream.getvalue()


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("a.txt", "text")
    return stream.getvalue()


def numpy_file() -> bytes:
    stream = io.BytesIO()
    np.save(stream, GREY)
    return stream.getvalue()


MGH = nibabel.MGHImage(VOLUME, AFFINE).to_bytes()
KINDS = {
    "GIF": pillow("GIF"),
    "WebP": pillow("WEBP"),
    "JPEG 2000": pillow("JPEG2000"),
    "JPEG 2000 ": pillow("JPEG2000", no_jp2=True),
    "JPEG XL": imagecodecs.jpegxl_encode(GREY),
    "JPEG XL ": imagecodecs.jpegxl_encode(GREY, usecontainer=True),
    "JPEG XR": imagecodecs.jpegxr_encode(GREY),
    "AVIF": imagecodecs.avif_encode(np.dstack([GREY] * 3)),
    "HEIC": struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(100),
    "QOI": imagecodecs.qoi_encode(np.dstack([GREY] * 3)),
    "PNM or PAM": pillow("PPM"),
    "an icon": pillow("ICO"),
    "PDF": pillow("PDF"),
    "NumPy": numpy_file(),
    "a zip container": zipped(),
    "a tar container": tar(),
    "an xz-compressed": lzma.compress(MGH),
    "a bzip2-compressed": bz2.compress(MGH),
    "a Zstandard-compressed": imagecodecs.zstd_encode(MGH),
    "FreeSurfer MGH": MGH,
    "FreeSurfer MGZ": gzip.compress(MGH),
    "a gzip file of NRRD": gzip.compress(b"NRRD0004\n" + bytes(500)),
    "a gzip file of a tar container": gzip.compress(tar()),
    "a gzip file of PNG": gzip.compress(pillow("PNG", compress_level=0)),
    "a gzip file of other content": gzip.compress(b"words " * 200),
    "whose voxels are in another file": pair(nibabel.Nifti1Pair, "header"),
    "whose voxels are in another file ": pair(nibabel.Nifti2Pair, "header"),
    "an Analyze 7.5 header": pair(nibabel.AnalyzeImage, "header"),
    "an MP4 video": struct.pack(">I", 24) + b"ftypisom" + bytes(100),
    "an AVI video": b"RIFF" + bytes(4) + b"AVI LIST" + bytes(100),
    "a Matroska": b"\x1a\x45\xdf\xa3" + bytes(100),
    "an MPEG video": b"\0\0\1\xba" + bytes(100),
}


def refused(data: bytes) -> tuple[str, str]:
    with pytest.raises(InputError) as caught:
        decode(data)
    return caught.value.reason, str(caught.value)


@pytest.mark.parametrize("name", KINDS)
def test_sound_files_of_other_kinds_are_named(name):
    reason, message = refused(KINDS[name])
    assert reason == "unsupported" and name.strip() in message


@pytest.mark.parametrize("suffix, name", [(".nrrd", "NRRD"), (".mha", "MetaImage")])
def test_kinds_that_itk_writes(suffix, name, tmp_path):
    data = itk(suffix, tmp_path)
    reason, message = refused(data)
    assert reason == "unsupported" and name in message


def test_kinds_that_are_read_have_no_other_name():
    sound = [pillow("PNG"), pillow("JPEG"), pillow("TIFF"), pillow("BMP")]
    assert not any(foreign_kind(data) for data in sound)
    rng = np.random.default_rng(1)
    names = [foreign_kind(rng.bytes(600)) for _ in range(3000)]
    assert not any(names)
    for text in (b"<!DOCTYPE html><html>404</html>", b"", b"\0" * 600, b"P", b"RIFF"):
        assert foreign_kind(text) == ""
    assert refused(b"<!DOCTYPE html><html>404</html>")[0] == "unreadable"


JPEGS = {
    "JPEG-LS of 8 bits": imagecodecs.jpegls_encode(GREY),
    "lossless JPEG of 12 bits": imagecodecs.ljpeg_encode(DEEP, bitspersample=12),
    "extended sequential JPEG of 12 bits": imagecodecs.jpeg8_encode(
        DEEP, bitspersample=12, level=95
    ),
}


@pytest.mark.parametrize("name", JPEGS)
def test_jpegs_of_other_codings_are_named(name):
    reason, message = refused(JPEGS[name])
    assert reason == "unsupported" and name in message


@pytest.mark.parametrize("marker, name", [(0xC5, "hierarchical"), (0xCB, "arithmetic")])
def test_codings_that_nothing_writes_any_more(marker, name):
    data = bytearray(imagecodecs.jpeg8_encode(GREY))
    data[data.index(b"\xff\xc0") + 1] = marker
    reason, message = refused(bytes(data))
    assert reason == "unsupported" and name in message


@pytest.mark.parametrize("options", [{}, {"lossless": True}])
def test_jpegs_that_are_read(options):
    for data in (imagecodecs.jpeg8_encode(GREY, **options), pillow("JPEG", progressive=True)):
        frames, _ = read_raster(data, Limits())
        truth = imagecodecs.jpeg8_decode(data).astype(int)
        assert np.abs(frames[0, ..., 0] - truth).max() <= 1
