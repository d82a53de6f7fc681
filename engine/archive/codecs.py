"""Loads the decoders of DICOM quietly; imported before anything else that needs pydicom.

python-gdcm, which decodes JPEG Lossless, begins with ``import dl``, a module of
Python 2: any folder or package of that name on the path would break it, and pydicom
with it. So it is loaded here, while that name leads nowhere.

pydicom's warnings and logged tracebacks quote element values, which may identify a
patient; what makes a file unusable is raised all the same. nibabel reports harmless
header repairs for every file.
"""

from __future__ import annotations

import logging
import sys
import warnings


def load_gdcm() -> bool:
    """Import gdcm without its probes for other modules; False where it is not installed."""
    blocked = [name for name in ("dl", "DLFCN") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(blocked))  # type: ignore[arg-type]
    try:
        import gdcm
    except ImportError:
        return False
    finally:
        for name in blocked:
            del sys.modules[name]
    for channel in ("Debug", "Warning", "Error"):
        getattr(gdcm.Trace, f"{channel}Off")()
    return True


HAVE_GDCM = load_gdcm()
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
