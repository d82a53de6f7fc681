"""The files of one DICOM series in one folder, as one item for each volume.

Refuses to know what else a header says: ids and messages hold a hash of it at most.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from medclipsam.engine.archive.entry import Entry
from medclipsam.engine.archive.files import open_file
from medclipsam.engine.archive.limits import Limits, refuse
from medclipsam.engine.archive.readers.dicom.dicom import Picture, make_grid, read_picture
from medclipsam.engine.archive.readers.dicom.file import is_dicom, read_header
from medclipsam.engine.archive.readers.dicom.geometry import join_planes, read_position, read_turn
from medclipsam.engine.archive.readers.dicom.grayscale import functional
from medclipsam.engine.archive.readers.dicom.spacing import read_numbers, read_spacing
from medclipsam.engine.archive.readers.dicom.stacks import Slice, make_stacks
from medclipsam.engine.archive.readers.window import as_frames
from medclipsam.engine.errors import InputError
from medclipsam.engine.types import Grid, ItemRef

# What tells volumes at one place apart, the most telling first: (functional group, keyword).
TIMES = (
    ("FrameContentSequence", "TemporalPositionIndex"),
    ("", "TemporalPositionIdentifier"),
    ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("", "TriggerTime"),
    ("MRDiffusionSequence", "DiffusionBValue"),
    ("", "InversionTime"),
    ("", "AcquisitionNumber"),
    ("", "AcquisitionTime"),
)
TAGS = [
    *("SeriesInstanceUID", "FrameOfReferenceUID", "Rows", "Columns", "NumberOfFrames"),
    *("InstanceNumber", "ImageType", "EchoTime", "EchoNumbers"),
    *("ImageOrientationPatient", "ImagePositionPatient", "DetectorInformationSequence"),
    *("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"),
    *("SequenceOfUltrasoundRegions", "SharedFunctionalGroupsSequence"),
    "PerFrameFunctionalGroupsSequence",
    *(keyword for group, keyword in TIMES if not group),
]
DIGITS = 3  # of direction cosines in an id
HASH = 12  # hex digits of an id


@dataclass(frozen=True)
class Head:
    """One file of a series: ``text`` names the series, and the direction in round numbers."""

    file: Path
    text: str
    slice: Slice


def group_series(files: Iterable[Path], prefix: str) -> dict[str, Entry | None]:
    """Put the DICOM files of one folder together that are slices of one volume.

    Those are files with the same SeriesInstanceUID, Rows and Columns that ``make_stacks`` puts
    together. A file with several frames, or the only one of its volume, stays an item of its
    own.

    Args:
        files: of one folder, by name.
        prefix: the folder's path below the archive's root, with ``/`` at its end.

    Returns:
        Name of each file of a volume → the entry of the volume for its first file by
        name, None for the others.
    """
    heads = {head.file.name: head for head in map(_read_head, files) if head is not None}
    stacks = make_stacks(head.slice for head in heads.values())
    volumes = [[heads[each.name] for each in stack] for stack in stacks if len(stack) > 1]
    texts = [min(head.text for head in volume) for volume in volumes]
    grouped: dict[str, Entry | None] = {}
    for volume, text in zip(volumes, texts, strict=True):
        names = [head.file.name for head in volume]
        # Alone it keeps the id that its series always had.
        own = text if texts.count(text) == 1 else f"{text}|{min(names)}"
        series = hashlib.sha256(own.encode("utf-8", "surrogateescape")).hexdigest()[:HASH]
        ref = ItemRef(f"{prefix}series-{series}")
        grouped |= dict.fromkeys(names)
        grouped[min(names)] = Entry(ref, files=tuple(head.file for head in volume))
    return grouped


def read_series(sources: Iterable[bytes], limits: Limits) -> tuple[np.ndarray, Grid]:
    """Decode the files of a series, in the order of their frames, each through its window.

    Returns:
        frames uint8 (F, H, W, 3) and the grid.
    """
    pictures: list[Picture] = []
    for data in sources:
        if not is_dicom(data):
            raise refuse("unreadable", "expected a DICOM file in the series, got another kind")
        pictures.append(read_picture(data, limits))
        _check_sizes(pictures, limits)
    if all(picture.constant for picture in pictures):
        raise refuse("constant", "expected a picture, got the same value in every pixel")
    planes = join_planes([picture.planes for picture in pictures])
    frames = _stack([picture.pixels for picture in pictures])
    return frames, make_grid(frames, pictures[0], planes)


def _check_sizes(pictures: Sequence[Picture], limits: Limits) -> None:
    """Refuse the last picture if it does not fit to those before it."""
    expected, got = pictures[0].pixels.shape[1:3], pictures[-1].pixels.shape[1:3]
    if got != expected:
        raise refuse(
            "unsupported",
            f"expected files of {expected[0]} × {expected[1]} pixels throughout the series, got "
            f"one of {got[0]} × {got[1]}",
        )
    limits.check_pixels(sum(len(picture.pixels) for picture in pictures), *expected)


def _stack(parts: Sequence[np.ndarray]) -> np.ndarray:
    """(F, H, W) or (F, H, W, 3) pixels, one after the other, as frames (F, H, W, 3)."""
    if all(part.ndim == 3 for part in parts):
        return as_frames(np.concatenate(parts))
    return as_frames(np.concatenate([as_frames(part) for part in parts]))


def _read_head(file: Path) -> Head | None:
    """What the header says of a file's place; None unless it is one frame of a series."""
    try:
        with open_file(file) as stream:
            ds = read_header(stream, TAGS)
            return None if ds is None else _head(file, ds)
    except InputError:  # reading it says why
        return None
    except Exception:  # a damaged header may raise anything; reading it says why
        return None


def _head(file: Path, ds: Dataset) -> Head | None:
    uid, rows, columns = ds.get("SeriesInstanceUID"), ds.get("Rows"), ds.get("Columns")
    if not uid or not rows or not columns or int(ds.get("NumberOfFrames") or 1) > 1:
        return None
    turn, place = read_turn(ds), read_position(ds)
    size = f"{uid}|{int(rows)}|{int(columns)}"
    kinds = [str(kind) for kind in np.atleast_1d(ds.get("ImageType") or [])]
    echo = read_numbers(functional(ds, 0, "MREchoSequence"), "EffectiveEchoTime")
    marks = [_numbers(ds, group, keyword) for group, keyword in TIMES]
    number = read_numbers(ds, "InstanceNumber")
    one = Slice(
        name=file.name,
        kind=f"{size}|{ds.get('FrameOfReferenceUID')}|{'LOCALIZER' in kinds}|"
        f"{read_numbers(ds, 'EchoNumbers')}",
        turn=tuple(turn),
        spacing=read_spacing(ds) or (),
        echo=tuple(echo or read_numbers(ds, "EchoTime")),
        position=tuple(place),
        marks=(tuple(kinds), *marks),
        moment=tuple(mark[0] if mark else -np.inf for mark in (*marks, tuple(number))),
    )
    return Head(file, f"{size}|{[round(value, DIGITS) + 0.0 for value in turn]}", one)


def _numbers(ds: Dataset, group: str, keyword: str) -> tuple[float, ...]:
    return tuple(read_numbers(functional(ds, 0, group) if group else ds, keyword))
