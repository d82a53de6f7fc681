"""DICOM: its pixels as they are displayed, and where they lie in space.

Whatever of this room is imported first, ``codecs`` comes before it: pydicom must not load GDCM.
"""

from medclipsam.engine.archive.readers.dicom.codecs import HAVE_GDCM

__all__ = ["HAVE_GDCM"]
