"""The archive: which files are items, and what each of them shows."""

from medclipsam.engine.archive.codecs import HAVE_GDCM
from medclipsam.engine.archive.limits import Limits
from medclipsam.engine.archive.listing import Listing, list_items
from medclipsam.engine.archive.reader import read_image

__all__ = ["HAVE_GDCM", "Limits", "Listing", "list_items", "read_image"]
