"""How far apart the pixel centres of a DICOM frame lie, from whichever element tells."""

from collections.abc import Iterator

import numpy as np
from pydicom.dataset import Dataset

from medclipsam.engine.archive.readers.dicom.grayscale import functional

CENTIMETRES = 3  # of PhysicalUnitsXDirection
PICTURE = 1  # of RegionSpatialFormat: a 2D image, neither M-mode nor a spectrum
SAME = 1e-3  # part by which spacings that count as equal may differ


def read_spacing(ds: Dataset, frame: int = 0) -> tuple[float, float] | None:
    """(row, column) distance in mm, or None where no element tells.

    The first usable one of: Pixel Spacing (DICOM PS3.3 10.7.1.1, also of a functional group),
    Imager Pixel Spacing (C.8.7.1.1, at the detector), Nominal Scanned Pixel Spacing (C.8.6.1,
    of a film), and the scale of ultrasound regions (C.8.5.5), where all of them agree.
    """
    for numbers in _candidates(ds, frame):
        if len(numbers) == 2 and min(numbers) > 0:
            return numbers[0], numbers[1]
    return None


def read_aspect(ds: Dataset) -> float:
    """Row distance divided by column distance, from Pixel Aspect Ratio (C.7.6.3.1.7); else 1."""
    numbers = read_numbers(ds, "PixelAspectRatio")
    return numbers[0] / numbers[1] if len(numbers) == 2 and min(numbers) > 0 else 1.0


def read_numbers(ds: Dataset, keyword: str) -> list[float]:
    """The finite numbers of an element, or nothing where it is missing or damaged."""
    try:
        value = ds.get(keyword)
        numbers = [float(v) for v in (value if hasattr(value, "__iter__") else [value])]
    except (TypeError, ValueError):
        return []
    return numbers if np.isfinite(numbers).all() else []


def _candidates(ds: Dataset, frame: int) -> Iterator[list[float]]:
    yield read_numbers(functional(ds, frame, "PixelMeasuresSequence"), "PixelSpacing")
    yield read_numbers(
        functional(ds, frame, "FramePixelDataPropertiesSequence"), "ImagerPixelSpacing"
    )
    yield read_numbers(ds, "NominalScannedPixelSpacing")
    regions = [numbers for region in ds.get("SequenceOfUltrasoundRegions") or []
               if (numbers := _read_region(region))]  # fmt: skip
    if regions and np.ptp(np.log(regions), axis=0).max() <= SAME:
        yield regions[0]


def _read_region(region: Dataset) -> list[float]:
    """(row, column) distance in mm inside an ultrasound region, or nothing if it has none."""
    units = [read_numbers(region, f"PhysicalUnits{axis}Direction") for axis in "XY"]
    deltas = [read_numbers(region, f"PhysicalDelta{axis}") for axis in "YX"]
    shape = region.get("RegionSpatialFormat")
    if any(unit != [CENTIMETRES] for unit in units) or shape not in (None, PICTURE):
        return []
    numbers = [abs(10.0 * delta[0]) for delta in deltas if len(delta) == 1 and delta[0]]
    return numbers if len(numbers) == 2 else []
