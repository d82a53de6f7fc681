"""Masks as files: how they are encoded, what they are called, how they are read back.

Refuses to know where a run folder is and when to write. Equal masks give equal bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
from nibabel.nifti1 import Nifti1Image
from nibabel.nifti2 import Nifti2Image
from PIL import Image as PillowImage

from medclipsam.engine.archive.limits import DEFAULT_LIMITS, Limits, refuse
from medclipsam.engine.archive.listing import known_suffix
from medclipsam.engine.archive.nifti import frames_to_voxels, is_nifti, read_nifti_mask
from medclipsam.engine.archive.raster import raster_kind, read_raster_mask
from medclipsam.engine.archive.reader import read_file
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.types import Grid, ItemRef

MASK_SUFFIXES = (".png", ".tif", ".nii.gz")
NAME_BYTES = 240  # file systems allow 255; the rest is for temporary names
WORLD = 1  # sform and qform code: scanner coordinates
LEVEL = 6  # of gzip


def encode_mask(mask: np.ndarray, grid: Grid) -> tuple[str, bytes]:
    """The mask file of one item and label, on the grid of its source.

    Args:
        mask: bool (F, H, W), in the order of the item's frames.
        grid: how these frames lie in the source file.

    Returns:
        Suffix and content: ``.nii.gz`` uint8 0/1 in the source's stored voxel order,
        ``.png`` 0/255 for one frame, ``.tif`` 0/255 with one page a frame otherwise.
    """
    if mask.ndim != 3 or mask.dtype != bool:
        raise ValueError(f"expected a bool mask (F, H, W), got {mask.dtype} {mask.shape}")
    if grid.kind == "nifti":
        return ".nii.gz", _encode_nifti(mask, grid)
    pages = [PillowImage.fromarray(frame.astype(np.uint8) * 255) for frame in mask]
    stream = io.BytesIO()
    if len(pages) == 1:
        pages[0].save(stream, "PNG")
        return ".png", stream.getvalue()
    pages[0].save(
        stream, "TIFF", save_all=True, append_images=pages[1:], compression="tiff_adobe_deflate"
    )
    return ".tif", stream.getvalue()


def _encode_nifti(mask: np.ndarray, grid: Grid) -> bytes:
    voxels = frames_to_voxels(mask, grid).astype(np.uint8)
    kind = Nifti1Image if max(voxels.shape) < 1 << 15 else Nifti2Image
    affine = np.asarray(grid.affine)
    image = kind(voxels, affine)
    image.set_sform(affine, code=WORLD)
    image.set_qform(affine, code=WORLD)
    if not np.allclose(image.get_qform(), affine, rtol=1e-3, atol=1e-3):
        image.header["qform_code"] = 0  # a quaternion cannot hold sheared axes
    image.header.set_xyzt_units("mm")
    stream = io.BytesIO()
    # No name and no time, so that the bytes depend on the mask alone.
    with gzip.GzipFile("", "wb", compresslevel=LEVEL, fileobj=stream, mtime=0) as file:
        file.write(image.to_bytes())
    return stream.getvalue()


def read_mask(path: Path, limits: Limits = DEFAULT_LIMITS) -> tuple[np.ndarray, Grid]:
    """Read a mask or label map: bool (F, H, W), True where nonzero, and its grid.

    Takes every raster kind (palette indices count, not their colours) and NIfTI. An
    empty mask is a mask.

    Raises:
        InputError: the file cannot be read as a mask.
    """
    data = read_file(path, limits)
    if is_nifti(data):
        return read_nifti_mask(data, limits)
    if raster_kind(data):
        return read_raster_mask(data, limits)
    raise refuse(
        "unreadable",
        f"expected a mask as PNG, TIFF or NIfTI, got {path.name!r} that starts with "
        f"{data[:8].hex(' ')}",
    )


def mask_path(label: str, ref: ItemRef, suffix: str) -> PurePosixPath:
    """Where an item's mask goes, relative to the run folder.

    ``masks/LABEL/`` mirrors the archive's tree. An item's whole name is kept, and the
    mask's suffix appended unless it is there already: ``a/b.png`` → ``a/b.png``,
    ``a/b.dcm`` → ``a/b.dcm.png``, ``s.nii`` → ``s.nii.nii.gz``. Two marks keep apart
    what would coincide, without a look at other items:

    - ``~`` follows a name without an image suffix: ``IM1`` → ``IM1~.png``, because an
      item ``IM1.png`` keeps its name;
    - ``+`` follows a name that an item of the other two kinds may be given:
      ``b.dcm.png`` → ``b.dcm+.png``, and a folder called like a mask, ``x.png/`` → ``x.png+/``.

    Bytes that are not UTF-8 are written as ``\\xNN``, and ``\\`` itself twice. Names
    beyond 240 bytes are cut and end in a hash.
    """
    *folders, name = (_printable(part) for part in ref.path.split("/"))
    folders = [f"{f}+" if f.endswith((*MASK_SUFFIXES, "+")) else f for f in folders]
    if name.endswith(suffix):
        stem = name[: -len(suffix)]
        clash = known_suffix(stem) or stem.endswith(("~", "+"))
        name = f"{stem}+" if clash else stem
    elif not known_suffix(name):
        name = f"{name}~"
    names = [_fit(folder, "") for folder in folders]
    return PurePosixPath("masks", safe_label(label), *names, _fit(name, suffix))


def _printable(part: str) -> str:
    return ItemRef(part).id


def _fit(stem: str, suffix: str) -> str:
    data = (stem + suffix).encode()
    if len(data) <= NAME_BYTES:
        return stem + suffix
    kept = data[: NAME_BYTES - 40].decode(errors="ignore")
    return f"{kept}#{hashlib.sha256(data).hexdigest()[:16]}{suffix}"


def safe_label(label: str) -> str:
    """``label`` as a folder name: letters, digits, ``-`` and ``_``; ``_`` for all others."""
    label = unicodedata.normalize("NFC", label)
    return "".join(sign if sign.isalnum() or sign in "-_" else "_" for sign in label)


def label_folders(labels: Iterable[str]) -> dict[str, str]:
    """label → folder name.

    Raises:
        ConfigError: a label is empty or too long, or two would share a folder, also on
            file systems that ignore case.
    """
    folders: dict[str, str] = {}
    taken: dict[str, str] = {}
    for label in labels:
        folder = safe_label(label)
        if not folder or len(folder.encode()) > NAME_BYTES:
            raise ConfigError(
                f"expected a label of 1 to {NAME_BYTES} bytes, got {label!r}; rename it"
            )
        other = taken.setdefault(folder.casefold(), label)
        if other != label:
            raise ConfigError(
                f"the labels {other!r} and {label!r} would share the folder {folder!r}; "
                "rename one of them"
            )
        folders[label] = folder
    return folders
