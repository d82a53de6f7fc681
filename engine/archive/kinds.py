"""What a file is called when it is an item, a container of items, or a list of them."""

import os

SUFFIXES = (
    ".nii.gz",
    ".png",
    ".jpg",
    ".jpeg",
    ".tif",
    ".tiff",
    ".bmp",
    ".dcm",
    ".dicom",
    ".ima",
    ".nii",
)
CONTAINERS = (".tar", ".tar.gz", ".tgz", ".zip")
LISTS = (".csv", ".tsv", ".parquet")
MAGIC_END = 132  # bytes of a file that tell whether it is DICOM


def known_suffix(name: str) -> str:
    """The image suffix ``name`` ends in, as written there, or empty."""
    lower = name.lower()
    return next((name[-len(s) :] for s in SUFFIXES if lower.endswith(s)), "")


def is_container(name: str) -> bool:
    """Whether ``name`` is that of a container, whose members are items."""
    return name.lower().endswith(CONTAINERS)


def is_list(name: str) -> bool:
    """Whether ``name`` is that of a table with the path of an item in each row."""
    return name.lower().endswith(LISTS)


def may_be_dicom(name: str) -> bool:
    """Whether a file without image suffix is worth a look at its magic bytes."""
    suffix = os.path.splitext(name)[1]
    return (not suffix or suffix[1:].isdigit()) and name.upper() != "DICOMDIR"
