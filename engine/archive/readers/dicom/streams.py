"""Compressed frames inside DICOM objects: how many there are, and whether they are whole."""

from itertools import islice

from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import RLELossless

from medclipsam.engine.archive.limits import refuse
from medclipsam.engine.archive.readers.codestream import find_end, read_frame


def check_streams(ds: Dataset, count: int) -> int:
    """Refuse compressed frames that are missing, cut off, or of another size than declared.

    Decoders fill the rest of a picture that is cut off with grey, and a frame may claim
    more pixels than the header that the limits were checked against. Bytes behind the end
    of a stream are padding, and frames beyond ``count`` are not looked at.

    Returns:
        The bits of a sample in the streams: BitsAllocated where they do not tell.
    """
    offsets = None
    if "ExtendedOffsetTable" in ds and "ExtendedOffsetTableLengths" in ds:
        offsets = (ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths)
    streams = generate_frames(ds.PixelData, number_of_frames=count, extended_offsets=offsets)
    got, bits = 0, 0
    for stream in islice(streams, count):
        got += 1
        if ds.file_meta.TransferSyntaxUID == RLELossless:
            continue
        frame = read_frame(stream)
        if frame is None:
            raise refuse("unreadable", f"expected frame {got} to begin as a picture, got no header")
        if (frame.rows, frame.columns) != (ds.Rows, ds.Columns):
            raise refuse(
                "unreadable",
                f"expected frames of {ds.Rows} × {ds.Columns}, got one of "
                f"{frame.rows} × {frame.columns}",
            )
        bits = max(bits, frame.bits)
        if find_end(stream) is None:
            raise refuse("truncated", f"expected frame {got} up to its end mark, got only a part")
    if got < count:
        raise refuse("truncated", f"expected {count} frames, got {got}")
    return bits or int(ds.BitsAllocated)
