"""Names of file kinds that are not read here, by their magic bytes.

A sound file of another kind is no damaged one, and its name tells what to convert.
"""

import struct

START = 560  # bytes of a file that are looked at
NAMES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"GIF8", "GIF"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"II\xbc", "JPEG XR"),
    (0, b"NRRD000", "NRRD"),
    (0, b"%PDF-", "PDF"),
    (0, b"PK\3\4", "a zip container"),
    (0, b"PK\5\6", "an empty zip container"),
    (0, b"Rar!\x1a\7", "a RAR container"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip container"),
    (0, b"\xfd7zXZ\0", "an xz-compressed file"),
    (0, b"BZh", "a bzip2-compressed file"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard-compressed file"),
    (257, b"ustar", "a tar container"),
    (0, b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (0, b"\0\0\1\xba", "an MPEG video"),
    (0, b"\0\0\1\xb3", "an MPEG video"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a Windows Media video"),
    (0, b"FLV\1", "a Flash video"),
    (0, b"8BPS", "Photoshop"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"\0\0\1\0", "an icon"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"\x89HDF\r\n\x1a\n", "HDF5 (or MINC 2, or MATLAB 7.3)"),
    (0, b"CDF\1", "NetCDF (or MINC 1)"),
    (0, b"CDF\2", "NetCDF (or MINC 1)"),
    (0, b"MATLAB 5.0", "MATLAB"),
    (0, b"\x93NUMPY", "NumPy"),
    (0, b"ZISRAWFILE", "Zeiss CZI"),
    (0, b"\xda\xce\xbe\x0a", "Nikon ND2"),
    (0, b"MRMC", "an MRtrix image"),
    (0, b"mrtrix image", "an MRtrix image"),
    (0, b"MATRIX72", "ECAT"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"qoif", "QOI"),
    (344, b"ni1\0", "a NIfTI header (.hdr) whose voxels are in another file (.img)"),
    (4, b"ni2\0", "a NIfTI header (.hdr) whose voxels are in another file (.img)"),
)
BRANDS = {
    b"heic": "HEIC", b"heix": "HEIC", b"heim": "HEIC", b"heis": "HEIC", b"hevc": "HEIC",
    b"mif1": "HEIF", b"msf1": "HEIF", b"avif": "AVIF", b"avis": "AVIF",
    b"qt  ": "a QuickTime video",
}  # fmt: skip
RIFF = {b"WEBP": "WebP", b"AVI ": "an AVI video"}


def foreign_kind(start: bytes) -> str:
    """The name of a kind that is known and not read here, or empty.

    Args:
        start: the first ``START`` bytes of a file, or more.
    """
    for place, magic, name in NAMES:
        if start[place : place + len(magic)] == magic:
            return name
    if start[:4] == b"RIFF" and start[8:12] in RIFF:
        return RIFF[start[8:12]]
    if start[4:8] == b"ftyp":
        return BRANDS.get(start[8:12], "an MP4 video")
    if start[:1] == b"P" and start[1:2] in b"1234567" and start[2:3].isspace():
        return "PNM or PAM"
    return _by_fields(start)


def _by_fields(start: bytes) -> str:
    """Kinds without magic bytes, known by what must stand in their headers."""
    text = start[:200].lstrip()
    if text.startswith((b"ObjectType", b"NDims")) and b"=" in text:
        return "MetaImage"
    for order in "<>" if len(start) >= 348 else "":
        (size,), (axes,) = (
            struct.unpack_from(f"{order}i", start),
            struct.unpack_from(f"{order}h", start, 40),
        )
        if size == 348 and 1 <= axes <= 7:
            return "an Analyze 7.5 header (.hdr) whose voxels are in another file (.img)"
    # FreeSurfer's MGH, big-endian: version 1, four sizes, a type of voxel.
    if len(start) >= 28:
        version, *sizes, kind, _ = struct.unpack_from(">7i", start)
        if version == 1 and all(1 <= size < 1 << 16 for size in sizes) and 0 <= kind <= 10:
            return "FreeSurfer MGH"
    return ""
