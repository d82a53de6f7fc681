"""The archive: which files are items, and what each of them shows."""

from medclipsam.engine.archive.archive import Archive
from medclipsam.engine.archive.decoders.pool import Decoders, read_image
from medclipsam.engine.archive.entry import Entry
from medclipsam.engine.archive.limits import Limits
from medclipsam.engine.archive.readers.dicom import HAVE_GDCM
from medclipsam.engine.archive.readers.reader import Decoded, decode
from medclipsam.engine.archive.source import open_archive

__all__ = [
    "HAVE_GDCM",
    "Archive",
    "Decoded",
    "Decoders",
    "Entry",
    "Limits",
    "decode",
    "open_archive",
    "read_image",
]
