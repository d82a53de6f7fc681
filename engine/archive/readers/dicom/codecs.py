"""Loads the decoders of DICOM quietly; imported before anything else that needs pydicom.

pydicom imports GDCM when it is installed, and GDCM must not enter this process: libraries
loaded after it share its C++ run-time, and OpenCV then corrupts the heap as soon as it
writes a PNG (python-gdcm 3.2.6, OpenCV 5.0: ``free(): invalid pointer``). ``lossless`` loads
it in decode processes; here it is hidden while pydicom looks for it.

pydicom's warnings and logged tracebacks quote element values, which may identify a
patient; what makes a file unusable is raised all the same. nibabel reports harmless
header repairs for every file.
"""

import importlib
import importlib.util
import logging
import sys
import warnings


def load_pydicom() -> bool:
    """Import pydicom's decoders without GDCM; returns whether GDCM is installed.

    Where somebody has loaded GDCM already, nothing is hidden.
    """
    # It would also import requests, to download its test files: a third of its loading time.
    hidden = [name for name in ("gdcm", "requests") if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        for name in ("pydicom.pixels", "pydicom.pixel_data_handlers.gdcm_handler"):
            importlib.import_module(name)  # each asks for GDCM once
    finally:
        for name in hidden:
            del sys.modules[name]
    return importlib.util.find_spec("gdcm") is not None


HAVE_GDCM = load_pydicom()
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
