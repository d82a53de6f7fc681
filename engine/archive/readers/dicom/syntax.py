"""DICOM transfer syntaxes: which of them are decoded here, and what a deflated one inflates to."""

import zlib

from pydicom.pixels import get_decoder
from pydicom.uid import UID

from medclipsam.engine.archive.limits import Limits, refuse

DEFLATED = 1 << 16  # bytes inflated at a time


def check_syntax(text: str) -> None:
    """Refuse by name a transfer syntax that nothing here decodes.

    Before anything else is parsed: a private one may order bytes in any way.
    """
    syntax = UID(text)
    if not syntax.is_valid:
        raise refuse("unreadable", "expected the UID of a transfer syntax, got no UID")
    if not syntax.is_transfer_syntax:
        kind = "private" if syntax.is_private else "unknown"
        raise refuse("unsupported", f"no decoder exists for the {kind} transfer syntax {text}")
    try:
        get_decoder(syntax)
    except NotImplementedError as exc:
        name = f"{text} ({syntax.name})"
        raise refuse("unsupported", f"no decoder exists for transfer syntax {name}") from exc


def check_deflated(data: bytes, limits: Limits) -> None:
    """Inflate once without keeping anything: pydicom itself has no limit."""
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    for start in range(0, len(data), DEFLATED):
        part = data[start : start + DEFLATED]
        while part and not inflater.eof:
            size += len(inflater.decompress(part, 1 << 20))
            limits.check_bytes(size)
            part = inflater.unconsumed_tail
    inflater.flush()
    if not inflater.eof:
        raise refuse("truncated", "expected a whole deflated DICOM file, got only a part")
