"""DICOM files as bytes: how they are recognised, and completed where their beginning is missing.

A file begins with 128 bytes of anything, ``DICM`` and elements of group 0002, one of which
names the transfer syntax (PS3.10, section 7.1). Some devices leave parts of that out. Such a
file is recognised by two elements in their order, of groups 0002 or 0008, as the very first;
nothing else is guessed.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from medclipsam.engine.archive.kinds import MAGIC_END
from medclipsam.engine.archive.limits import refuse

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# Transfer syntaxes that say how elements are encoded (PS3.5, annex A).
IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
MAGIC = b"DICM"
PREAMBLE = 128
META, IDENTIFYING = 0x0002, 0x0008  # groups that a file begins with
FIRST = 0x0060  # elements of group 0008 that may be the first of a file
SYNTAX = 0x0010  # element of group 0002
HEADER = 1 << 26  # bytes that the header of a file without a preamble may have
# PS3.5, tables 7.1-1 and 7.1-2: value representations, by the size of their length.
SHORT = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
UNDEFINED = 0xFFFFFFFF

Element = tuple[int, int, int, int]  # group, element, place of the value, its length


def is_dicom(start: bytes) -> bool:
    """Whether a file whose first ``MAGIC_END`` bytes or more are ``start`` is DICOM."""
    if start[PREAMBLE:MAGIC_END] == MAGIC:
        return True
    return _find_syntax(start[:MAGIC_END], len(MAGIC) * start.startswith(MAGIC)) is not None


def resembles_dicom(start: bytes) -> bool:
    """Whether a file may be DICOM without a preamble, though that is not sure."""
    groups = (META, IDENTIFYING, 0x0010, 0x0018, 0x0020, 0x0028)
    for order in "<>":
        if len(start) >= 8 and struct.unpack_from(f"{order}H", start)[0] in groups:
            short = struct.unpack_from(f"{order}I", start, 4)[0] < 1 << 16
            return start[4:6] in SHORT | LONG or (order == "<" and short)
    return start.startswith(MAGIC)


def complete(data: bytes) -> bytes:
    """``data``, which ``is_dicom``, with a preamble and a transfer syntax.

    Raises:
        InputError: it names no transfer syntax, and its elements do not show one.
    """
    whole = data[PREAMBLE:MAGIC_END] == MAGIC
    at = MAGIC_END if whole else len(MAGIC) * data.startswith(MAGIC)
    meta, end, cut = b"", at, False
    for group, element, place, length in _elements(data, at, "<", explicit=True):
        cut = place + length > len(data)
        if group != META or cut:
            break
        if element == SYNTAX and length:
            return data if whole else bytes(PREAMBLE) + MAGIC + data[at:]
        if 0 < element < SYNTAX:  # 0 is the length of the group, which changes
            meta += data[end : place + length]
        end = place + length
    syntax = _find_syntax(data, end)
    if syntax is None:
        _refuse_start(cut or end + 8 > len(data), end > at)
    name = syntax.encode() + b"\0" * (len(syntax) % 2)
    tag = struct.pack("<HH2sH", META, SYNTAX, b"UI", len(name)) + name
    return bytes(PREAMBLE) + MAGIC + meta + tag + data[end:]


def _refuse_start(cut: bool, begins: bool) -> NoReturn:
    """Say why the elements of a file cannot be read.

    Args:
        cut: whether it ends before they do.
        begins: whether there is any element of its header.
    """
    if cut:
        raise refuse("truncated", "expected a whole DICOM header, got only a part")
    if not begins:
        raise refuse("unreadable", "expected DICOM elements, got damaged content")
    raise refuse(
        "unsupported",
        "expected a transfer syntax in the DICOM header, got none, and elements that do not show "
        "it safely; save the file again with a whole header",
    )


def read_header(stream: BinaryIO, tags: Sequence[str]) -> Dataset | None:
    """The elements ``tags`` of a DICOM file, without its pixels.

    Returns:
        None where the file is no DICOM, or deflated, which would inflate all of it.

    Raises:
        Exception: whatever pydicom raises on damaged headers.
    """
    from pydicom import dcmread

    start = stream.read(MAGIC_END)
    if not is_dicom(start):
        return None
    if start[PREAMBLE:] != MAGIC or not read_syntax(stream):
        stream.seek(0)
        stream = io.BytesIO(complete(stream.read(HEADER)))
    if read_syntax(stream) == DEFLATED:
        return None
    stream.seek(0)
    return dcmread(stream, stop_before_pixels=True, specific_tags=list(tags))


def read_syntax(stream: BinaryIO) -> str:
    """The transfer syntax that a file with a preamble names, or empty.

    ``stream`` stands behind group 0002 then.
    """
    from pydicom.filereader import read_dataset

    stream.seek(MAGIC_END)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag.group != META)
    return str(meta.get("TransferSyntaxUID") or "")


def _find_syntax(data: bytes, at: int) -> str | None:
    """The transfer syntax that the elements from ``at`` on show, or None.

    The first two count: known groups, in order, with lengths that lead to each other.
    """
    ways = (("<", True, EXPLICIT), ("<", False, IMPLICIT),
            (">", True, BIG_ENDIAN))  # fmt: skip
    for order, explicit, syntax in ways:
        found = list(zip(range(2), _elements(data, at, order, explicit), strict=False))
        if len(found) < 2:
            continue
        (first, second) = (element[:2] for _, element in found)
        group = first[0]
        meta = group == META and order == "<" and explicit and first[1] <= SYNTAX
        known = meta or (group == IDENTIFYING and first[1] <= FIRST)
        if known and first < second and second[0] in (group, *range(group, 0x30, 2)):
            return syntax
    return None


def _elements(data: bytes, at: int, order: str, explicit: bool) -> Iterator[Element]:
    """Elements from ``at`` on, as long as their headers make sense and lie inside ``data``."""
    while at + 8 <= len(data):
        group, element = struct.unpack_from(f"{order}HH", data, at)
        kind = data[at + 4 : at + 6]
        place = at + 8
        if not explicit:
            (length,) = struct.unpack_from(f"{order}I", data, at + 4)
        elif kind in SHORT:
            (length,) = struct.unpack_from(f"{order}H", data, at + 6)
        elif kind in LONG and data[at + 6 : at + 8] == b"\0\0" and at + 12 <= len(data):
            (length,) = struct.unpack_from(f"{order}I", data, at + 8)
            place = at + 12
        else:
            return
        if length % 2 or length == UNDEFINED:
            return
        yield group, element, place, length
        at = place + length
