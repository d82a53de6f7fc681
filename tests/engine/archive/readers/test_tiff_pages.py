"""TIFF: stacks of every program, channels and times, reduced copies."""

import io
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image as PillowImage
from tiff_files import HEIGHT, WIDTH, check, colour, expected, levels, refused, robust, write


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("writer", ["plain", "imagej", "ome", "contiguous"])
def test_stacks_have_every_frame(dtype, count, writer):
    stack = np.stack([np.roll(levels(dtype), 3 * k, 1) for k in range(count)])
    options = {
        "plain": {"photometric": "minisblack", "metadata": {}},
        "imagej": {"imagej": True, "metadata": {"axes": "ZYX"}},
        "ome": {"ome": True, "metadata": {"axes": "ZYX"}},
        "contiguous": {"photometric": "minisblack", "metadata": {"axes": "ZYX"}},
    }[writer]
    data = write(stack, **options)
    check(data, expected(stack))
    if writer == "imagej" and count > 1:
        check(one_directory(data), expected(stack))


def one_directory(data: bytes) -> bytes:
    """The file as ImageJ writes stacks beyond 4 GiB: a single directory."""
    order = "<" if data[:2] == b"II" else ">"
    (at,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, at)
    end = at + 2 + 12 * count
    cut = bytearray(data)
    cut[end : end + 4] = bytes(4)
    with tifffile.TiffFile(io.BytesIO(bytes(cut))) as file:
        assert len(file.pages) == 1 and file.is_imagej
        pages = file.imagej_metadata["images"]
        assert file.series[0].shape[0] == pages, "the oracle finds them all"
    return bytes(cut)


def test_a_single_directory_stack_that_is_cut_off():
    stack = np.stack([levels("u2")] * 5)
    data = one_directory(write(stack, imagej=True))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        end = file.pages[0].dataoffsets[0] + stack.nbytes
    assert refused(data[: end - 10])[0] == "truncated"


def test_a_description_copied_from_a_stack_makes_no_stack():
    stream = io.BytesIO()
    info = {270: "ImageJ=1.53\nimages=12\nslices=12\n"}
    PillowImage.fromarray(levels("u1")).save(stream, "TIFF", tiffinfo=info)
    data = stream.getvalue()
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        if file.pages[0].offset > file.pages[0].dataoffsets[0]:
            check(data, levels("u1"))
        else:  # this Pillow writes the directory first, as ImageJ does
            assert refused(data)[0] == "truncated"


def test_truncated_shaped_series():
    stack = np.stack([np.roll(levels("u2"), k, 0) for k in range(6)])
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream, shaped=True) as writer:
        writer.write(stack, photometric="minisblack", metadata={"truncate": True}, truncate=True)
    data = stream.getvalue()
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        assert len(file.pages) == 1 and file.series[0].shape[0] == 6
    check(data, robust(stack))


def test_ome_channels_times_and_pyramids():
    stack = np.stack([np.roll(levels("u2"), k, 0) for k in range(6)]).reshape(2, 3, HEIGHT, WIDTH)
    data = write(stack, ome=True, photometric="minisblack", metadata={"axes": "TCYX"})
    check(data, robust(stack.reshape(6, HEIGHT, WIDTH)))
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream, ome=True) as writer:
        options = {"photometric": "minisblack", "metadata": {"axes": "CYX"}}
        writer.write(stack[0], subifds=1, **options)
        writer.write(stack[0][:, ::2, ::2], subfiletype=1, photometric="minisblack")
    check(stream.getvalue(), robust(stack[0]))
    rgb = write(colour("u1"), ome=True, photometric="rgb", metadata={"axes": "YXS"})
    check(rgb, colour("u1"))


def test_an_ome_file_that_lost_pages():
    stack = np.stack([levels("u2")] * 4)
    data = write(stack, ome=True, photometric="minisblack", metadata={"axes": "ZYX"})
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        at = file.pages[1].offset
    (count,) = struct.unpack_from("<H", data, at)
    end = at + 2 + 12 * count
    reason, message = refused(data[:end] + bytes(4) + data[end + 4 :])
    assert reason == "truncated" and "4 pages as OME says, got 2" in message


def test_reduced_copies_are_no_frames():
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(levels("u1"), metadata=None)
        writer.write(levels("u1")[::2, ::2], subfiletype=1, metadata=None)
    check(stream.getvalue(), levels("u1"))
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(levels("u1"), metadata=None)
        old = [(255, 3, 1, 2, True)]
        writer.write(levels("u1")[::2, ::2], metadata=None, extratags=old)
    check(stream.getvalue(), levels("u1"))


@pytest.mark.parametrize("count", [3, 4])
def test_planes_that_tifffile_labels_by_itself(count):
    """Of (3, H, W) it makes RGB; of (4, H, W) RGB and alpha, which a stack of four is not."""
    stack = np.stack([np.roll(levels("u2"), k, 0) for k in range(count)])
    data = write(stack, metadata={})
    if count == 3:
        check(data, robust(np.moveaxis(stack, 0, -1)))
    else:
        reason, message = refused(data)
        assert reason == "unsupported" and "minisblack" in message


@pytest.mark.parametrize("big", [False, True])
def test_a_chain_that_leads_out_of_the_file(big):
    """tifffile goes on without the pages behind it."""
    stack = np.stack([np.roll(levels("u2"), k, 0) for k in range(4)])
    data = bytearray(write(stack, photometric="minisblack", metadata={}, bigtiff=big))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        at = file.pages[2].offset
    counter, entry, pointer = ("<Q", 20, "<Q") if big else ("<H", 12, "<I")
    (count,) = struct.unpack_from(counter, data, at)
    end = at + struct.calcsize(counter) + entry * count
    for target in (len(data) + 100, len(data) - 1, 1):
        struct.pack_into(pointer, data, end, target)
        assert refused(bytes(data))[0] in ("truncated", "unreadable")
    struct.pack_into(pointer, data, end, at)  # to itself: the end
    check(bytes(data), expected(stack[:3]))
