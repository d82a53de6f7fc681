"""One image read in the test's own process, and DICOM JPEG Lossless in a decode process."""

import atexit
from functools import cache
from pathlib import Path

from medclipsam.engine.archive import Decoders, Entry, Limits, decode
from medclipsam.engine.archive.readers.dicom.dicom import read_dicom
from medclipsam.engine.errors import BackendError
from medclipsam.engine.types import Image, ItemRef


def read_image(root, ref, limits=None):
    """The item ``ref`` of the folder, or the one file, ``root``."""
    path = Path(root) / ref.path if Path(root).is_dir() else Path(root)
    decoded = decode([path], limits or Limits())
    return Image(ref, decoded.frames, decoded.grid)


def read_dicom_anywhere(data, limits):
    """Frames and grid of an object; of JPEG Lossless as a decode process gives them."""
    try:
        return read_dicom(data, limits)
    except BackendError:
        decoded = _decoders().decode(Entry(ItemRef("x.dcm"), fetch=lambda: data))
        return decoded.frames, decoded.grid


@cache
def _decoders():
    decoders = Decoders(1)
    atexit.register(decoders.close)
    return decoders
