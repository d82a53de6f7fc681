"""One finished item, and the files that other tools read of it.

Refuses to know where a run folder is and when to write: it gives paths and bytes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np

from medclipsam.engine.config import FORMATS
from medclipsam.engine.outputs.dicomseg import encode_dicom_seg
from medclipsam.engine.outputs.labelmap import burn_labels
from medclipsam.engine.outputs.masks import encode_mask
from medclipsam.engine.outputs.names import output_path, safe_label
from medclipsam.engine.outputs.planes import encode_planes, encode_png
from medclipsam.engine.outputs.volumes import encode_volume
from medclipsam.engine.types import Grid, ItemRef

FULL = 65535  # what a saliency of 1 is stored as

File = tuple[PurePosixPath, bytes]


@dataclass(frozen=True)
class Labelled:
    """What is known of an item once all its frames are segmented.

    Attributes:
        ref: what its files are called after.
        frames: uint8 (F, H, W, 3) as displayed.
        grid: how the frames lie in the source.
        masks: label → bool (F, H, W), in the order of the prompts.
        withheld: labels whose mask is not trusted, and not delivered as a label.
        saliency: label → uint16 (F, H, W), 65535 for 1; only the format ``saliency`` reads it.
        crf: label → bool (F, H, W), the refined saliency before SAM; only the format ``crf``
            reads it.
        boxes: label → int32 (K, 4) a frame; only the format ``overlay`` reads it.
        prompts: label → its text.
        confidence: label → confidence in [0, 1].
        sources: the encoded DICOM files, one for each frame or one for all of them; only
            the format ``dicom-seg`` reads it.
    """

    ref: ItemRef
    frames: np.ndarray
    grid: Grid
    masks: dict[str, np.ndarray]
    withheld: frozenset[str] = frozenset()
    saliency: dict[str, np.ndarray] = field(default_factory=dict)
    crf: dict[str, np.ndarray] = field(default_factory=dict)
    boxes: dict[str, list[np.ndarray]] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)
    confidence: dict[str, float] = field(default_factory=dict)
    sources: tuple[bytes, ...] = ()

    @property
    def delivered(self) -> dict[str, np.ndarray]:
        """label → mask of the labels that are not withheld."""
        return {label: mask for label, mask in self.masks.items() if label not in self.withheld}


def encode_outputs(
    labelled: Labelled, formats: Sequence[str], label_index: Mapping[str, int]
) -> list[File]:
    """The files of an item in each of ``formats``: path in the run folder and content.

    ``labelmap``  ``labelmaps/…``: uint8, see ``labelmap.burn_labels``; PNG, TIFF or NIfTI
        as the masks are.
    ``nifti``  ``nifti/LABEL/…``: uint8 0/1 of every kind of source, see
        ``volumes.encode_volume``.
    ``dicom-seg``  ``dicom-seg/…``: one DICOM segmentation of all labels; nothing for
        sources other than DICOM.
    ``saliency``  ``saliency/LABEL/…``: uint16, 65535 for 1; PNG, TIFF or NIfTI (with the
        slope 1/65535) as the masks are. Also of withheld labels.
    ``crf``  ``crf/LABEL/…``: the masks of the CRF, from which boxes were taken, stored as the
        masks are. Also of withheld labels, and of absent ones whose saliency was refined.
    ``overlay``  ``overlays/LABEL/…``: a PNG of the frame with the largest mask, with
        outlines and boxes, in the pixels of the source. Also of withheld labels.

    Equal input gives equal bytes.

    Args:
        labelled: the item.
        formats: names of :data:`FORMATS`.
        label_index: label → number in label maps and segmentations, the same all over a
            run; see ``labelmap.number_labels``.

    Raises:
        InputError: a DICOM source lacks what a segmentation of it must say.
    """
    encoders = {
        "labelmap": lambda: _labelmap(labelled, label_index),
        "nifti": lambda: _nifti(labelled),
        "dicom-seg": lambda: _dicom_seg(labelled, label_index),
        "saliency": lambda: _saliency(labelled),
        "crf": lambda: _crf(labelled),
        "overlay": lambda: _overlay(labelled),
    }
    unknown = set(formats) - encoders.keys()
    if unknown:
        raise ValueError(f"expected formats out of {FORMATS}, got {sorted(unknown)}")
    return [file for name in formats for file in encoders[name]()]


def _labelmap(item: Labelled, label_index: Mapping[str, int]) -> Iterator[File]:
    burnt = burn_labels(item.masks, label_index, item.withheld)
    suffix, data = encode_planes(burnt, item.grid)
    yield output_path(("labelmaps",), item.ref, suffix), data


def _nifti(item: Labelled) -> Iterator[File]:
    for label, mask in item.delivered.items():
        path = output_path(("nifti", safe_label(label)), item.ref, ".nii.gz")
        yield path, encode_volume(mask.astype(np.uint8), item.grid)


def _dicom_seg(item: Labelled, label_index: Mapping[str, int]) -> Iterator[File]:
    if item.grid.kind == "dicom" and item.delivered:
        masks = dict(sorted(item.delivered.items(), key=lambda pair: label_index[pair[0]]))
        data = encode_dicom_seg(item.sources, masks, item.prompts)
        yield output_path(("dicom-seg",), item.ref, ".dcm"), data


def _saliency(item: Labelled) -> Iterator[File]:
    for label, levels in item.saliency.items():
        suffix, data = encode_planes(levels, item.grid, slope=1 / FULL)
        yield output_path(("saliency", safe_label(label)), item.ref, suffix), data


def _crf(item: Labelled) -> Iterator[File]:
    for label, mask in item.crf.items():
        suffix, data = encode_mask(mask, item.grid)
        yield output_path(("crf", safe_label(label)), item.ref, suffix), data


def _overlay(item: Labelled) -> Iterator[File]:
    from medclipsam.engine.outputs.figure import overlay

    for label, mask in item.masks.items():
        best = int(mask.sum((1, 2)).argmax())
        picture = overlay(item.frames[best], mask[best], item.boxes[label][best])
        yield output_path(("overlays", safe_label(label)), item.ref, ".png"), encode_png(picture)
