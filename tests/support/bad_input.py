"""A folder of everything that has ever broken a bulk run, and what each item must end as.

Written anew by each test: no file of it is stored. The oracles for what the files are supposed
to be are the libraries that write them.
"""

import gzip
import io
import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
from archives.drawn import (
    COLOUR,
    GREY,
    NOISE,
    SIDE,
    deep,
    deep_colour,
    dicom,
    nifti,
    picture,
    png,
    tar,
    tiff,
    volume,
    zeros,
)
from PIL import Image as PillowImage
from pydicom import uid

from medclipsam.engine.types import ItemRef

READABLE = frozenset({""})
CUT = frozenset({"truncated", "unreadable"})
WRONG = frozenset({"truncated", "unreadable", "unsupported", "too-large", "empty", "no-pixels"})
Expected = dict[str, frozenset[str]]


def write_corpus(folder: Path) -> Expected:
    """Fill ``folder``; returns item id → reason codes that are right for it, "" = readable."""
    expected: Expected = {}
    files = {**_sound(), **_cut_off(), **_garbage(), **_oversized(), **_odd(), **_containers()}
    for name, (data, reasons) in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if isinstance(reasons, dict):
            expected |= {f"{name}/{member}" if member else name: r for member, r in reasons.items()}
        else:
            expected[name] = reasons
    return expected | _special(folder)


def _sound() -> dict:
    """Kinds that are odd and must be read all the same."""
    palette = PillowImage.fromarray(GREY // 86)
    palette.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 250])
    stream = io.BytesIO()
    palette.save(stream, "PNG")
    pages = [PillowImage.fromarray(np.roll(NOISE, k, 0)) for k in range(3)]
    stack = io.BytesIO()
    pages[0].save(stack, "TIFF", save_all=True, append_images=pages[1:])
    rgba = np.dstack([COLOUR, NOISE])
    files = {
        "8 bits.png": picture(NOISE),
        "16 bits.png": picture(deep()),
        "float.tif": picture(deep().astype(np.float32) / 7, "TIFF"),
        "palette.png": stream.getvalue(),
        "bilevel.png": picture(NOISE > 99),
        "cmyk.jpg": picture(COLOUR, "JPEG", "CMYK"),
        "rgba.png": picture(rgba),
        "progressive.jpeg": picture(COLOUR, "JPEG", progressive=True),
        "pages.tiff": stack.getvalue(),
        "bitmap.bmp": picture(COLOUR, "BMP"),
        "monochrome1.dcm": dicom(deep(), PhotometricInterpretation="MONOCHROME1"),
        "frames.dcm": dicom(np.stack([deep(), deep().T])),
        "deflated.dcm": dicom(deep(), uid.DeflatedExplicitVRLittleEndian),
        "IM000001": dicom(deep()),
        "IM000002": dicom(deep())[132:],
        "no preamble.dcm": dicom(deep())[132:],
        "planes.tif": tiff(deep_colour().transpose(2, 0, 1), planarconfig="separate"),
        "white is zero.tif": tiff(deep(), photometric="miniswhite"),
        "floats.tif": tiff(deep() / np.float32(7), compression="zlib", predictor=True),
        "stack.tif": tiff(np.stack([deep()] * 3), imagej=True, photometric="minisblack"),
        "volume.nii": nifti(volume()),
        "volume.nii.gz": gzip.compress(nifti(volume())),
    }
    return {f"sound/{name}": (data, READABLE) for name, data in files.items()}


def _cut_off() -> dict:
    whole = {
        "png": picture(NOISE),
        "jpg": picture(NOISE, "JPEG"),
        "tif": picture(NOISE, "TIFF"),
        "lzw.tif": picture(NOISE, "TIFF", compression="tiff_lzw"),
        "dcm": dicom(deep()),
        "bare.dcm": dicom(deep())[132:],
        "planes.tif": tiff(deep_colour().transpose(2, 0, 1), planarconfig="separate"),
        "tiles.tif": tiff(deep_colour(), tile=(16, 16), compression="lzw", predictor=True),
        "stack.tif": tiff(np.stack([deep()] * 3), imagej=True, photometric="minisblack"),
        "nii": nifti(volume()),
        "nii.gz": gzip.compress(nifti(volume())),
    }
    found = {}
    for suffix, data in whole.items():
        for tenth in range(10):
            reasons = CUT | {"no-pixels"} if suffix.endswith("dcm") else CUT
            cut = data[: len(data) * tenth // 10]
            found[f"cut/{tenth}0.{suffix}"] = (cut, reasons if tenth else frozenset({"empty"}))
    return found


def _garbage() -> dict:
    magics = {
        "png": picture(NOISE)[:8],
        "jpg": b"\xff\xd8\xff\xe0",
        "tif": b"II*\0\x08\0\0\0",
        "big.tif": b"MM\0+\0\x08\0\0",
        "bmp": b"BM",
        "dcm": bytes(128) + b"DICM",
        "header.dcm": dicom(deep())[:400],
        "bare.dcm": dicom(deep())[132:180],
        "page.tif": tiff(deep_colour(), compression="lzw")[:300],
        "nii": nifti(volume())[:352],
        "nii.gz": b"\x1f\x8b\x08\0",
        "none.png": b"",
        "tar": b"",
        "tar.gz": b"\x1f\x8b\x08\0\0\0\0\0\0\xff",
        "zip": b"PK\3\4",
    }
    rng = np.random.default_rng(23)
    return {
        f"garbage/{size}.{suffix}": (magic + rng.bytes(size), WRONG)
        for suffix, magic in magics.items()
        for size in (100, 3000, 200_000)
        # As much garbage as there are voxels is a picture of garbage.
        if not (suffix == "nii" and size > 1000)
    } | {"garbage/picture.nii": (magics["nii"] + rng.bytes(3000), READABLE)}


def _oversized() -> dict:
    row = zeros(65_000 * 8126 >> 20, zlib.MAX_WBITS)
    plain = dicom(deep(), uid.DeflatedExplicitVRLittleEndian)
    start = 144 + struct.unpack_from("<I", plain, 140)[0]
    volume_bomb = gzip.compress(nifti(volume()) + bytes(40 << 20))
    too_large = frozenset({"too-large"})
    giant = tarfile.TarInfo("giant.png")
    giant.size = 1 << 40
    return {
        "bomb/65k.png": (png(65_000, 65_000, 1, row), too_large),
        "bomb/text.png": (
            png(SIDE, SIDE, 8, zlib.compress(bytes(range(49)) * SIDE), zeros(512, zlib.MAX_WBITS)),
            READABLE,  # remarks are never inflated
        ),
        "bomb/more than declared.png": (
            png(SIDE, SIDE, 8, zeros(512, zlib.MAX_WBITS)),
            frozenset({"unreadable", "too-large", "constant"}),
        ),
        "bomb/deflated.dcm": (plain[:start] + zeros(2049, -zlib.MAX_WBITS), too_large),
        "bomb/volume.nii.gz": (volume_bomb, too_large),
        "bomb/giant.tar.gz": (
            gzip.compress(giant.tobuf() + bytes(1 << 20)),
            {"giant.png": too_large, "": frozenset({"truncated"})},
        ),
        "bomb/frames.dcm": (dicom(deep(), NumberOfFrames=10**6), too_large),
        "bomb/rows.dcm": (dicom(deep(), Rows=65_000, Columns=65_000), too_large),
    }


def _odd() -> dict:
    """Whole files that show nothing, or nothing that can be read."""
    values = volume().astype(np.float32)
    bad = {}
    for name, value in (("nan", np.nan), ("infinite", -np.inf)):
        bad[name] = values.copy()
        bad[name][1, 2, 3] = value
    huge = picture(NOISE)[:16] + struct.pack(">I", 0) + picture(NOISE)[20:]
    files = {
        "empty.png": (b"", "empty"),
        "0 wide.png": (huge, "unreadable"),
        "1 by 1.png": (picture(NOISE[:1, :1]), "constant"),
        "black.png": (picture(np.zeros_like(NOISE)), "constant"),
        "no pixels.dcm": (dicom(deep(), PixelData=None), "no-pixels"),
        "film.dcm": (dicom(deep(), uid.MPEG2MPML), "unsupported"),
        "0 rows.dcm": (dicom(deep(), Rows=0), "empty"),
        "nan.nii": (nifti(bad["nan"]), "non-finite"),
        "infinite.nii.gz": (gzip.compress(nifti(bad["infinite"])), "non-finite"),
        "constant.nii": (nifti(np.full_like(volume(), 4)), "constant"),
        "series.nii": (nifti(np.stack([volume()] * 2, axis=-1)), "unsupported"),
        "film.png": (b"GIF89a" + bytes(400), "unsupported"),
        "report.dcm": (dicom(deep(), PixelData=None, Rows=None)[132:], "no-pixels"),
        "private.dcm": (
            dicom(deep()).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.113619.5.2\0\0"),
            "unsupported",
        ),
        "page.png": (b"<!DOCTYPE html><html>404</html>", "unreadable"),
    }
    return {f"odd/{name}": (data, frozenset({reason})) for name, (data, reason) in files.items()}


def _containers() -> dict:
    one = picture(NOISE)
    many = {f"{k}.png": picture(np.roll(NOISE, k, 1)) for k in range(4)}
    whole, zipped = tar(many), _zip(many)
    packed = tar(many, "w:gz")
    ok, cut = READABLE, frozenset({"truncated"})
    sound = dict.fromkeys(many, ok)
    inside = whole.index(b"2.png") + 512 + len(one) // 2
    damaged = bytearray(whole)
    damaged[whole.index(b"2.png") + 20] ^= 0x55
    return {
        "tars/sound.tar": (whole, sound),
        "tars/sound.tgz": (packed, sound),
        "tars/sound.zip": (zipped, sound),
        "tars/hostile.tar": (_hostile(), _HOSTILE),
        "tars/cut.tar": (whole[:inside], {"0.png": ok, "1.png": ok, "2.png": cut, "": cut}),
        "tars/no end.tar": (whole[: whole.index(b"3.png")], {**_without("3.png", sound), "": cut}),
        "tars/cut.zip": (zipped[:-30], {"": cut}),
        "tars/damaged.tar": (
            bytes(damaged),
            {"0.png": ok, "1.png": ok, "": frozenset({"unreadable"})},
        ),
        "tars/tricky.zip": (_tricky_zip(one), _TRICKY),
        "tars/empty.tar": (b"", {"": frozenset({"empty"})}),
        "tars/empty.zip": (b"", {"": frozenset({"empty", "unreadable"})}),
    }


def _without(name: str, members: dict) -> dict:
    return {key: value for key, value in members.items() if key != name}


def _hostile() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as file:
        for name in ("fine.png", "../up.png", "a/../../up.png", "/etc/abs.png", "C:\\x.png",
                     "fine.png", "..\\win.png", "./a//fine.png"):  # fmt: skip
            data = picture(NOISE)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo("nul.png")
        info.pax_headers = {"path": "nul\0.png"}
        file.addfile(info, io.BytesIO())
        kinds = {"soft": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "disk": tarfile.BLKTYPE,
                 "tty": tarfile.CHRTYPE, "pipe": tarfile.FIFOTYPE}  # fmt: skip
        for name, kind in kinds.items():
            info = tarfile.TarInfo(f"{name}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
    return stream.getvalue()


_UNSAFE, _NO_FILE = frozenset({"unsafe-name"}), frozenset({"not-a-file"})
_HOSTILE = {
    "fine.png": READABLE,
    "fine.png#2": READABLE,
    "a/fine.png": READABLE,
    "%2e%2e/up.png": _UNSAFE,
    "a/%2e%2e/%2e%2e/up.png": _UNSAFE,
    "%2fetc/abs.png": _UNSAFE,
    "C%3a%5cx.png": _UNSAFE,
    "%2e%2e%5cwin.png": _UNSAFE,
    "nul%00.png": _UNSAFE,
    **dict.fromkeys(("soft.png", "hard.png", "disk.png", "tty.png", "pipe.png"), _NO_FILE),
}


def _zip(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def _tricky_zip(one: bytes) -> bytes:
    """Members with every kind of trouble; headers are altered after they were written."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("fine.png", one)
        file.writestr("../up.png", one)
        file.writestr("bz2.png", one, zipfile.ZIP_BZIP2)
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/passwd")
        file.writestr("bomb.png", bytes(1 << 20))
        file.writestr("secret.png", one)
        file.writestr("flipped.png", one, zipfile.ZIP_STORED)
        places = {info.filename: info.header_offset for info in file.infolist()}
    data = bytearray(stream.getvalue())
    directory = data.index(b"PK\1\2")

    def entry(name: bytes) -> int:
        return data.index(name, directory) - 46

    struct.pack_into("<I", data, entry(b"bomb.png") + 24, 1000)  # claims to inflate to 1000
    data[entry(b"secret.png") + 8] |= 1
    data[places["flipped.png"] + 30 + len("flipped.png") + len(one) // 2] ^= 8
    return bytes(data)


_TRICKY = {
    "fine.png": READABLE,
    "%2e%2e/up.png": _UNSAFE,
    "bz2.png": frozenset({"unsupported"}),
    "link.png": _NO_FILE,
    "bomb.png": frozenset({"too-large"}),
    "secret.png": frozenset({"unsupported"}),
    "flipped.png": frozenset({"unreadable"}),
}


def _special(folder: Path) -> Expected:
    """What only a file system can hold."""
    home = folder / "special"
    home.mkdir(parents=True)
    name = os.fsdecode(b"r\xf6ntgen\xff.png")
    (home / name).write_bytes(picture(NOISE))
    (home / "loop.png").symlink_to(home / "loop.png")
    (home / "dangling.png").symlink_to(home / "nowhere")
    (home / "linked.png").symlink_to(home / name)
    (home / "around").symlink_to(folder)
    os.mkfifo(home / "pipe.png")
    os.mkfifo(home / "pipe.tar")
    (home / "locked.png").write_bytes(picture(NOISE))
    (home / "locked.png").chmod(0)
    denied = READABLE if os.access(home / "locked.png", os.R_OK) else frozenset({"permission"})
    return {
        ItemRef(f"special/{name}").id: READABLE,
        "special/linked.png": READABLE,
        "special/locked.png": denied,
        **{f"special/{n}": _NO_FILE for n in ("loop.png", "dangling.png", "pipe.png", "pipe.tar")},
    }
