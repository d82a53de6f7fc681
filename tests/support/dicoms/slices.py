"""Slices of DICOM series whose names, numbers and places are in three different orders."""

import random
from pathlib import Path

import numpy as np
import pydicom
from archives.drawn import deep, dicom
from pydicom.dataset import Dataset

from medclipsam.engine.archive import Limits

UID = "1.2.826.0.1.3680043.8.498.1"
AXIAL, CORONAL = [1.0, 0, 0, 0, 1, 0], [1.0, 0, 0, 0, 0, -1]
OBLIQUE = [0.8, 0.6, 0, -0.36, 0.48, 0.8]
SPACING = [0.5, 0.75]
EXACT = 1e-6  # mm: decimal strings hold 16 characters
LIMITS = Limits()


def normal_of(turn) -> np.ndarray:
    return np.cross(turn[:3], turn[3:])


def write_slices(folder: Path, count=6, turn=OBLIQUE, step=2.5, names="{:03}.dcm", **elements):
    """Slices whose names, numbers and places are in three different orders."""
    folder.mkdir(parents=True, exist_ok=True)
    order = random.Random(4).sample(range(count), count)
    for k, name in zip(range(count), order, strict=True):
        place = np.array([-20.0, 30, 11]) + step * k * normal_of(turn)
        pixels = np.roll(deep(), 5 * k, 0)
        data = dicom(
            pixels,
            **{
                "SeriesInstanceUID": UID,
                "InstanceNumber": (7 * k) % count,
                "ImageOrientationPatient": turn,
                "ImagePositionPatient": [round(float(v), 9) for v in place],
                "PixelSpacing": SPACING,
                "SliceThickness": 2.0,
                "WindowCenter": 1800,
                "WindowWidth": 3000,
                **elements,
            },
        )
        (folder / names.format(name)).write_bytes(data)


def headers(files) -> list[Dataset]:
    return [pydicom.dcmread(file) for file in files]
