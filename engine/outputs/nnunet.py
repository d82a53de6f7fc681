"""Items and their masks as raw datasets of nnU-Net v2, ready to train on.

A run folder's ``nnunet`` is what the variable nnUNet_raw should point to.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from medclipsam.engine.durable import GrowingFolder, growing_folder
from medclipsam.engine.errors import ConfigError, InputError
from medclipsam.engine.outputs.cases import Case
from medclipsam.engine.outputs.labelmap import burn_labels, number_labels
from medclipsam.engine.outputs.planes import encode_png
from medclipsam.engine.outputs.volumes import encode_volume
from medclipsam.engine.types import Grid

FOLDER = "nnunet"
RESERVED = ("background", "ignore")  # nnU-Net gives these a meaning of their own
STEM_SIGNS = 40
# (volume, colour) → number, channels, file ending and the reader that nnU-Net shall use.
# The last one turns volumes to one orientation and also takes sheared ones.
KINDS = {
    (False, False): (501, ("grey",), ".png", "NaturalImage2DIO"),
    (True, False): (502, ("grey",), ".nii.gz", "NibabelIOWithReorient"),
    (False, True): (503, ("R", "G", "B"), ".png", "NaturalImage2DIO"),
    (True, True): (504, ("R", "G", "B"), ".nii.gz", "NibabelIOWithReorient"),
}


@dataclass
class _Dataset:
    folder: str
    channels: tuple[str, ...]
    ending: str
    reader: str
    cases: list[tuple[str, str, str]] = field(default_factory=list)


class NnunetFolder:
    """Up to four datasets that grow case by case, because one holds but one kind of picture:

    ``Dataset501_NAME``  single frames in grey, ``Dataset503_NAME``  in colour: PNG
    ``Dataset502_NAME``  volumes in grey, ``Dataset504_NAME``  in colour: ``.nii.gz``

    Volumes are NIfTI sources and whatever has several frames. Voxels are the 8-bit grey
    levels or colours that the models saw. A colour PNG holds its three channels; a colour
    volume is three files.

    In label files 0 is background and then come the labels in their order; where masks
    overlap the label named first wins. A label that was not asked of an item is background
    there. ``cases.csv`` of a dataset says which item each case is, and why its geometry is
    made up where it is.
    """

    def __init__(self, growing: GrowingFolder, labels: Sequence[str], name: str):
        self._growing = growing
        self._numbers = number_labels(labels)
        taken = sorted({label for label in labels if label.lower() in RESERVED})
        if taken:
            raise ConfigError(
                f"nnU-Net keeps the label {taken[0]!r} for itself; label the run with another name"
            )
        self._name = _plain(name) or "medclipsam"
        self._datasets: dict[tuple[bool, bool], _Dataset] = {}

    def add(self, case: Case, masks: Mapping[str, np.ndarray]) -> None:
        """Append a case: label → bool (F, H, W).

        Raises:
            InputError: its picture cannot be read any more, or is another one.
        """
        if case.decode is None:
            raise ValueError("expected cases with a picture, got one without decode")
        frames, grid = case.decode()
        burnt = burn_labels(masks, self._numbers)
        if frames.shape[:3] != burnt.shape:
            raise InputError(
                "read_image",
                "unreadable",
                f"expected a picture of {burnt.shape}, as its masks, got {frames.shape[:3]}; "
                "the archive has changed since the run",
            )
        volume = grid.kind == "nifti" or len(frames) > 1
        dataset = self._dataset(volume, bool(np.ptp(frames, axis=-1).any()))
        identifier = _identify(case.item)
        for ending, data in _encode(frames, burnt, grid, dataset):
            self._growing.write(f"{dataset.folder}/{ending.format(identifier)}", data)
        dataset.cases.append((identifier, case.item, grid.doubt if volume else ""))

    def finish(self) -> None:
        """Write what closes each dataset."""
        for dataset in self._datasets.values():
            page = {
                "channel_names": {str(k): name for k, name in enumerate(dataset.channels)},
                "labels": {"background": 0, **self._numbers},
                "numTraining": len(dataset.cases),
                "file_ending": dataset.ending,
                "overwrite_image_reader_writer": dataset.reader,
            }
            text = json.dumps(page, indent=2, ensure_ascii=False) + "\n"
            self._growing.write(f"{dataset.folder}/dataset.json", text.encode())
            table = io.StringIO()
            csv.writer(table).writerows([("case", "item", "geometry"), *dataset.cases])
            self._growing.write(f"{dataset.folder}/cases.csv", table.getvalue().encode())

    def _dataset(self, volume: bool, colour: bool) -> _Dataset:
        number, channels, ending, reader = KINDS[volume, colour]
        new = _Dataset(f"Dataset{number}_{self._name}", channels, ending, reader)
        return self._datasets.setdefault((volume, colour), new)


def _encode(
    frames: np.ndarray, burnt: np.ndarray, grid: Grid, dataset: _Dataset
) -> Iterator[tuple[str, bytes]]:
    """(path in the dataset with a place for the case, content) of image and label files."""
    image, label = "imagesTr/{}_%04d" + dataset.ending, "labelsTr/{}" + dataset.ending
    colour = len(dataset.channels) > 1
    if dataset.ending == ".png":
        yield image % 0, encode_png(frames[0] if colour else frames[0, ..., 0])
        yield label, encode_png(burnt[0])
        return
    solid = replace(grid, shape=(*grid.shape, 1)[:3])  # nnU-Net takes three axes only
    for channel in range(len(dataset.channels)):
        yield image % channel, encode_volume(frames[..., channel], solid)
    yield label, encode_volume(burnt, solid)


def _identify(item: str) -> str:
    """A case's name: unique, and safe on any file system."""
    stem = _plain(item.rsplit("/", 1)[-1])[:STEM_SIGNS]
    return f"{stem}-{hashlib.sha256(item.encode()).hexdigest()[:16]}".lstrip("-")


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")


@contextmanager
def open_nnunet(folder: Path, labels: Sequence[str], name: str) -> Iterator[NnunetFolder]:
    """``nnunet`` in ``folder``, which appears at the end, whole, or not at all.

    Raises:
        ConfigError: more than 254 labels, or one that nnU-Net keeps for itself.
        OutputError: the disk is full.
    """
    with growing_folder(folder / FOLDER) as growing:
        datasets = NnunetFolder(growing, labels, name)
        yield datasets
        datasets.finish()
