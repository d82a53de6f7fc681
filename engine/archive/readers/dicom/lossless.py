"""DICOM JPEG Lossless, decoded by GDCM, in decode processes only.

On some damaged streams GDCM throws a C++ exception that nothing catches and takes its
process along (found by flipping bytes), and beside OpenCV it corrupts the heap (see
``codecs``). A decode process has no OpenCV, and its end costs one item.
"""

import importlib
import io
import sys
from functools import cache

import numpy as np
from pydicom import dcmread
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import JPEGLossless, JPEGLosslessSV1

from medclipsam.engine.archive.limits import refuse
from medclipsam.engine.archive.readers.dicom.bits import AS_STORED
from medclipsam.engine.errors import BackendError

PLUGIN = "pydicom.pixels.decoders.gdcm"
_here = False


def allow_gdcm() -> None:
    """Say that this process may load GDCM: it is a decode process."""
    global _here
    _here = True


def decode_lossless(data: bytes) -> np.ndarray:
    """Stored cells of a DICOM file, as pydicom's ``pixel_array`` returns them.

    Raises:
        InputError: the pixels are damaged.
        BackendError: this is no decode process, or GDCM cannot be loaded.
    """
    if not _here:
        raise BackendError(
            "JPEG Lossless is decoded in a process of its own; read the item through "
            "medclipsam.engine.archive.Decoders"
        )
    _load_gdcm()
    ds = dcmread(io.BytesIO(data))
    ds.BitsStored = ds.BitsAllocated  # GDCM would cut cells by it, whatever HighBit says
    try:
        return pixel_array(ds, decoding_plugin="gdcm", **AS_STORED)
    except Exception as exc:
        raise refuse("unreadable", "expected JPEG Lossless pixels, got damaged content") from exc


@cache
def _load_gdcm() -> None:
    """Load GDCM, which ``codecs`` hid, and tell pydicom that it is there.

    GDCM begins with ``import dl``, a module of Python 2: a folder of that name on the path
    would break it, so the names it probes for lead nowhere.
    """
    for name in ("dl", "DLFCN"):
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        import gdcm
    except ImportError as exc:
        raise BackendError(f"cannot load python-gdcm ({exc}); install it again") from exc
    for channel in ("Debug", "Warning", "Error"):
        getattr(gdcm.Trace, f"{channel}Off")()
    importlib.reload(importlib.import_module(PLUGIN))
    for syntax in (JPEGLossless, JPEGLosslessSV1):
        decoder = get_decoder(syntax)
        decoder.remove_plugin("gdcm")  # known as missing
        decoder.add_plugin("gdcm", (PLUGIN, "_decode_frame"))
