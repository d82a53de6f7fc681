"""What a run writes: masks first, and of them whatever other tools read."""

from medclipsam.engine.outputs.cases import Case
from medclipsam.engine.outputs.collection import Collected, collect
from medclipsam.engine.outputs.labelled import Labelled, encode_outputs
from medclipsam.engine.outputs.labelmap import number_labels
from medclipsam.engine.outputs.maps import read_map
from medclipsam.engine.outputs.masks import encode_mask, read_mask
from medclipsam.engine.outputs.names import (
    MASK_SUFFIXES,
    check_folder,
    label_folders,
    mask_path,
    output_path,
    preview_path,
    safe_label,
)

__all__ = [
    "MASK_SUFFIXES",
    "Case",
    "Collected",
    "Labelled",
    "check_folder",
    "collect",
    "encode_mask",
    "encode_outputs",
    "label_folders",
    "mask_path",
    "number_labels",
    "output_path",
    "preview_path",
    "read_map",
    "read_mask",
    "safe_label",
]
