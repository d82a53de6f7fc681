"""Masks as DICOM segmentations, written by highdicom.

A segmentation carries the patient's and the study's identification of its source, as
DICOM requires: where a run must not tell whose images they were, leave it out.
"""

import hashlib
import io
import logging
import uuid
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from medclipsam.engine.errors import InputError
from medclipsam.engine.outputs.dicomsource import (
    Reference,
    align,
    frame_references,
    is_located,
    moment,
    read_heads,
)

NAME = "medclipsam"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
SERIES_NUMBER = 1000  # above that of the source
LABEL_SIGNS, TEXT_SIGNS = 64, 1024  # what a segment's label and description may hold
POSITION, CONTENT = 0x00209057, 0x00209111  # InStackPositionNumber, FrameContentSequence


def encode_dicom_seg(
    sources: Sequence[bytes], masks: Mapping[str, np.ndarray], prompts: Mapping[str, str]
) -> bytes:
    """One binary DICOM segmentation of an item: a segment for each label, in their order.

    Frames without any pixel are left out; where no label has any, every frame is kept, so
    that there is a valid object that says so. Where the frames lie parallel in one frame
    of reference, position and orientation are the source's; else (most ultrasound, 2-D
    X-ray, repeated positions) each frame only refers to the one it was made of.

    Category and type of every segment are SCT 85756007 "Tissue", because labels are free
    text: label and prompt tell what was meant. Algorithm type is AUTOMATIC.

    Equal input gives equal bytes: UIDs are hashes under 2.25, the series of one of its
    source series, and the content's date and time are the source's own.

    Args:
        sources: the encoded DICOM files, one for each frame or one for all.
        masks: label → bool (F, H, W); at least one.
        prompts: label → text, kept as the segment's description.

    Raises:
        InputError: the source lacks an identifier, or cannot be referred to.
    """
    stack = np.stack(list(masks.values()), axis=-1)  # (F, H, W, S)
    _hush()
    try:
        heads = read_heads(sources)
        facts = _facts(heads, masks, prompts)
        build = _locate if is_located(heads, len(stack)) else _refer
        seg = build(heads, stack, facts)
        _settle(seg)
        stream = io.BytesIO()
        seg.save_as(stream)
    except InputError:
        raise
    except Exception as exc:  # highdicom and odd elements may raise anything
        raise InputError(
            "encode_outputs",
            "unsupported",
            "expected a source that a DICOM segmentation can refer to, got one that highdicom "
            f"does not take ({type(exc).__name__}); leave dicom-seg out",
        ) from exc
    return stream.getvalue()


@cache
def _hush() -> None:
    """highdicom's warnings quote element values, which may identify a patient."""
    logging.getLogger("highdicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"highdicom(\.|$)")


def _facts(
    heads: Sequence[Dataset], masks: Mapping[str, np.ndarray], prompts: Mapping[str, str]
) -> dict[str, Any]:
    """Everything that highdicom is told, but for images and pixels."""
    head = heads[0]
    date, time = moment(head)
    instance = hashlib.sha256(repr([str(h.SOPInstanceUID) for h in heads]).encode())
    for label, mask in masks.items():
        instance.update(repr((label, prompts.get(label), mask.shape)).encode())
        instance.update(np.packbits(mask).tobytes())
    return {
        "segmentation_type": "BINARY",
        "segment_descriptions": _describe(masks, prompts),
        "series_instance_uid": _uid(str(head.SeriesInstanceUID)),
        "series_number": SERIES_NUMBER + _count(head.get("SeriesNumber")),
        "sop_instance_uid": _uid(instance.hexdigest()),
        "instance_number": max(1, _count(head.get("InstanceNumber"))),
        "manufacturer": NAME,
        "manufacturer_model_name": NAME,
        "software_versions": version(NAME),
        "device_serial_number": NAME,
        "content_label": NAME.upper(),
        "content_description": "Masks from text prompts",
        "content_creator_name": f"{NAME}^",
        "series_description": "Masks from text prompts",
        "content_date": date,
        "content_time": time,
        "specific_character_set": "ISO_IR 192",  # UTF-8: labels are free text
    }


def _describe(masks: Mapping[str, np.ndarray], prompts: Mapping[str, str]) -> list[Dataset]:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    algorithm = AlgorithmIdentificationSequence(
        "MedCLIP-SAM", codes.DCM.ArtificialIntelligence, version(NAME)
    )
    segments: list[Dataset] = []
    for number, label in enumerate(masks, start=1):
        tissue, automatic = codes.SCT.Tissue, "AUTOMATIC"
        name = _text(label, LABEL_SIGNS)
        segment = SegmentDescription(number, name, tissue, tissue, automatic, algorithm)
        if prompts.get(label):
            segment.SegmentDescription = _text(prompts[label], TEXT_SIGNS)
        segments.append(segment)
    return segments


def _text(text: str, signs: int) -> str:
    """``text`` as DICOM takes it: without its separator, without control signs, cut."""
    plain = "".join(sign if sign.isprintable() else " " for sign in text.replace("\\", "/"))
    return plain[:signs]


def _locate(heads: Sequence[Dataset], stack: np.ndarray, facts: Mapping[str, Any]) -> Dataset:
    """A segmentation that lies where its source lies."""
    align(heads)
    return _make(heads, stack, facts)


def _make(heads: Sequence[Dataset], stack: np.ndarray, facts: Mapping[str, Any]) -> Dataset:
    from highdicom.seg import Segmentation

    return Segmentation(heads, stack, **facts)


def _refer(heads: Sequence[Dataset], stack: np.ndarray, facts: Mapping[str, Any]) -> Dataset:
    """A segmentation whose frames refer to those of the source, without positions.

    highdicom makes such an object of a single image only, so it is given one of a class
    that needs no position; the frames are then put in one by one.
    """
    stand_in = deepcopy(heads[0])
    stand_in.SOPClassUID = SECONDARY_CAPTURE
    for keyword in ("FrameOfReferenceUID", "NumberOfFrames", "PixelSpacing"):
        if keyword in stand_in:
            del stand_in[keyword]
    seg = _make([stand_in], stack[:1], {**facts, "omit_empty_frames": False})
    references = frame_references(heads, len(stack))
    _place_frames(seg, references, stack)
    _name_sources(seg, references)
    return seg


def _place_frames(seg: Dataset, references: Sequence[Reference], stack: np.ndarray) -> None:
    models = seg.PerFrameFunctionalGroupsSequence  # that of the first frame, for each segment
    keep = stack.any((1, 2)) if stack.any() else np.ones((len(stack), len(models)), bool)
    groups, planes = [], []
    for segment, frame in np.argwhere(keep.T).tolist():
        group = deepcopy(models[segment])
        _point(group.DerivationImageSequence[0].SourceImageSequence[0], references[frame])
        content = group.FrameContentSequence[0]
        content.StackID = "1"
        content.InStackPositionNumber = frame + 1
        content.DimensionIndexValues = [segment + 1, frame + 1]
        groups.append(group)
        planes.append(stack[frame, :, :, segment].ravel())
    index = deepcopy(seg.DimensionIndexSequence[0])
    index.DimensionIndexPointer, index.FunctionalGroupPointer = POSITION, CONTENT
    index.DimensionDescriptionLabel = "In-Stack Position Number"
    seg.DimensionIndexSequence.append(index)
    seg.PerFrameFunctionalGroupsSequence = groups
    seg.NumberOfFrames = len(groups)
    seg.PixelData = np.packbits(np.concatenate(planes), bitorder="little").tobytes()
    overlap = stack.sum(-1, dtype=np.uint8).max() > 1
    seg.SegmentsOverlap = "YES" if overlap else "NO"


def _name_sources(seg: Dataset, references: Sequence[Reference]) -> None:
    """Put the real source in place of the one that highdicom was given."""
    wanted = dict.fromkeys((kind, instance, 0) for kind, instance, _ in references)
    series = seg.ReferencedSeriesSequence[0]
    for holder, keyword in ((series, "ReferencedInstanceSequence"), (seg, "SourceImageSequence")):
        model = holder[keyword].value[0]
        items = [deepcopy(model) for _ in wanted]
        for item, reference in zip(items, wanted, strict=True):
            _point(item, reference)
        setattr(holder, keyword, items)


def _point(item: Dataset, reference: Reference) -> None:
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID, frame = reference
    if frame:
        item.ReferencedFrameNumber = frame


def _settle(seg: Dataset) -> None:
    """Replace what changes from call to call, and end the pixels as DICOM says."""
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
        delattr(seg, keyword)
    for equipment in seg.get("ContributingEquipmentSequence", ()):
        if "ContributionDateTime" in equipment:
            del equipment.ContributionDateTime
    organisation = _uid(f"{seg.SOPInstanceUID} dimensions")
    for item in (*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence):
        item.DimensionOrganizationUID = organisation
    size = -(-int(seg.NumberOfFrames) * seg.Rows * seg.Columns // 8)
    seg.PixelData = seg.PixelData[:size] + b"\0" * (size % 2)  # highdicom 0.28 adds b"0"


def _uid(text: str) -> str:
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'{NAME} {text}').int}"


def _count(value: object) -> int:
    """An integer of the source, 0 where it has none that is usable."""
    try:
        return max(0, int(str(value)))
    except ValueError:
        return 0
