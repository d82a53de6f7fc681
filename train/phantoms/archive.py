"""A small archive of phantoms in every file format, with true masks and prompts beside it.

archive/ultrasound/…  mri/…  xray/…   PNG, 16-bit PNG, DICOM, NIfTI, one corrupt file
truth/LABEL/…                         the same tree, masks
prompts.csv                           item, label, prompt
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from medclipsam.engine.durable import write_durable
from medclipsam.engine.outputs import encode_mask
from medclipsam.engine.types import Grid
from medclipsam.train.phantoms.bundle import HELD_OUT
from medclipsam.train.phantoms.phantoms import MODALITIES, PROMPTS, TARGETS, Phantom, make_phantom

FORMATS = ("png", "png16", "dcm", "nii.gz")
SUFFIX = {"png": ".png", "png16": ".png", "dcm": ".dcm", "nii.gz": ".nii.gz"}


@dataclass(frozen=True)
class PhantomArchive:
    """Where everything was written."""

    archive: Path
    truth: Path
    prompts: Path


def write_phantom_archive(folder: Path, per_modality: int = 8) -> PhantomArchive:
    """Write the archive, the same one every time, of seeds never trained on.

    Every fourth phantom has no target, every fourth has two; each item is asked for both
    targets of its modality, so absence is asked for too.
    """
    written = PhantomArchive(folder / "archive", folder / "truth", folder / "prompts.csv")
    rows = []
    for m, modality in enumerate(MODALITIES):
        first, second = TARGETS[modality]
        for n in range(per_modality):
            targets = ((first,), (first, second), (), (second,))[n % 4]
            phantom = make_phantom(HELD_OUT + 1000 * m + n, modality, targets)
            form = FORMATS[(n + m) % len(FORMATS)]
            name = f"{modality}/patient {n // 2 + 1}/scan {n + 1}{SUFFIX[form]}"
            grid = _write_scan(written.archive / name, phantom, form, inverted=n % 8 > 3)
            for target in (first, second):
                suffix, data = encode_mask(phantom.mask(target)[None], grid)
                stem = name.removesuffix(SUFFIX[form])
                write_durable(written.truth / target / (stem + suffix), data)
                rows.append((name, target, PROMPTS[target]))
    corrupt = "xray/patient 1/corrupt.png"
    whole = (written.archive / _first_png(written.archive)).read_bytes()
    write_durable(written.archive / corrupt, whole[: len(whole) // 2])
    rows.append((corrupt, "nodule", PROMPTS["nodule"]))
    table = io.StringIO()
    csv.writer(table).writerows([("item", "label", "prompt"), *rows])
    write_durable(written.prompts, table.getvalue().encode())
    return written


def _first_png(archive: Path) -> Path:
    return sorted(path.relative_to(archive) for path in archive.rglob("*.png"))[0]


def _write_scan(path: Path, phantom: Phantom, form: str, inverted: bool) -> Grid:
    if form == "png":
        write_durable(path, cv2.imencode(".png", phantom.grey)[1].tobytes())
        return Grid("raster")
    deep = (phantom.pixels * 4095 + 0.5).astype(np.uint16)
    if form == "png16":
        write_durable(path, cv2.imencode(".png", deep)[1].tobytes())
        return Grid("raster")
    if form == "dcm":
        write_durable(path, encode_dicom(deep, inverted))
        return Grid("dicom")
    return _write_nifti(path, deep)


def encode_dicom(pixels: np.ndarray, inverted: bool) -> bytes:
    """12 bits in 16, as MONOCHROME2 or, inverted, as MONOCHROME1."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    seed = [str(pixels.tobytes())]
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=seed)
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    dataset.PixelSpacing = [1.0, 1.0]
    stored = 4095 - pixels if inverted else pixels
    dataset.PixelData = stored.astype("<u2").tobytes()
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _write_nifti(path: Path, pixels: np.ndarray) -> Grid:
    """One axial slice in left-posterior-superior order, so that it shows as drawn."""
    import nibabel

    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    voxels = pixels.T[..., None].astype(np.int16)
    image = nibabel.Nifti1Image(voxels, affine)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return Grid("nifti", (1.0, 1.0), affine, voxels.shape, 2)
