"""One item on its way through a run, and what it leaves behind: files and rows."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from medclipsam.engine.errors import InputError
from medclipsam.engine.outputs import Labelled, encode_mask, encode_outputs, mask_path, preview_path
from medclipsam.engine.outputs.figure import preview
from medclipsam.engine.types import FIGURES, Grid, Image, ItemRef, Outcome, Prompts, Segmentation

WITHHELD = "quarantine"  # folder of masks that are not trusted


@dataclass
class Work:
    """One item on its way through the run.

    Attributes:
        ref: the name it has in the run folder.
        segments: per frame label → result, filled as frames come through.
        saliency: per frame label → uint16 (H, W), where a format asks for it.
        missing: frames that are not through yet.
        sources: its encoded DICOM files, where a format asks for them.
        digest: sha256 of its encoded bytes.
        cost: bytes of the budget it holds.
        unexpected: what no stage raises on purpose, and why the item was given up.
    """

    ref: ItemRef
    prompts: Prompts
    image: Image | None = None
    error: InputError | None = None
    segments: list[dict[str, Segmentation]] = field(default_factory=list)
    saliency: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)
    missing: int = 0
    sources: tuple[bytes, ...] = ()
    digest: str = ""
    cost: int = 0
    unexpected: Exception | None = None
    started: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Delivery:
    """What is written for each item, beside its masks and previews.

    Attributes:
        formats: see ``medclipsam.engine.outputs.FORMATS``.
        min_confidence: masks below it are quarantined and kept apart.
        label_index: label → number in label maps, from 1.
        strict: items whose geometry is not known are quarantined.
    """

    formats: tuple[str, ...] = ()
    min_confidence: float = 0.0
    label_index: dict[str, int] = field(default_factory=dict)
    strict: bool = False

    def check_geometry(self, grid: Grid) -> None:
        """Refuse an item as soon as it is decoded.

        Raises:
            InputError: geometry is to be known, and is not.
        """
        if self.strict and grid.doubt:
            raise InputError(
                "read_image",
                "geometry",
                f"expected a known geometry, but {grid.doubt}; mend the source, or label it with "
                "--geometry warn",
            )


def finish_work(work: Work, delivery: Delivery) -> tuple[list[tuple[str, bytes]], list[Outcome]]:
    """The files of an item, relative to the run folder, and its ledger rows."""
    seconds = time.monotonic() - work.started
    if work.error is not None or work.image is None:
        error = work.error or InputError("read_image", "unreadable", "nothing was decoded")
        return [], [_lost(work, error, label, seconds) for label in work.prompts.labels]
    files: list[tuple[str, bytes]] = []
    rows = []
    plain: dict[int, bytes] = {}  # previews of frames on which nothing is drawn
    for label in work.prompts.labels:
        made, row = _finish_label(work, work.image, label, delivery.min_confidence, seconds, plain)
        files += made
        rows.append(row)
    if not delivery.formats:
        return files, rows
    labelled = _labelled(work, work.image, rows, "crf" in delivery.formats)
    for name in delivery.formats:
        try:
            encoded = encode_outputs(labelled, (name,), delivery.label_index)
        except InputError as exc:  # the masks are good: say what could not be made of them
            rows = [replace(row, message=f"{row.message} no {name}: {exc}".strip()) for row in rows]
        else:
            files += [(str(path), data) for path, data in encoded]
    return files, rows


def _lost(work: Work, error: InputError, label: str, seconds: float) -> Outcome:
    return Outcome(
        item=work.ref.id,
        label=label,
        status="quarantined",
        prompt=" | ".join(work.prompts.texts[label]),
        stage=error.stage,
        reason=error.reason,
        message=str(error),
        seconds=seconds,
        digest=work.digest,
    )


def _finish_label(
    work: Work,
    image: Image,
    label: str,
    least: float,
    seconds: float,
    plain: dict[int, bytes],
) -> tuple[list[tuple[str, bytes]], Outcome]:
    segments = [by_label[label] for by_label in work.segments]
    masks = np.stack([segment.mask for segment in segments])
    areas = masks.sum((1, 2))
    best = int(areas.argmax())
    present = [segment for segment in segments if segment.status == "done"]
    figures = {name: _mean(name, present or segments) for name in FIGURES}
    withheld = bool(present) and (figures["confidence"] or 0.0) < least
    suffix, data = encode_mask(masks, image.grid)
    path = str(mask_path(label, work.ref, suffix))
    if withheld:
        path = f"{WITHHELD}/{path.partition('/')[2]}"
    picture = _preview(image.frames[best], masks[best], segments[best].boxes, best, plain)
    row = Outcome(
        item=work.ref.id,
        label=label,
        status="quarantined" if withheld else "done" if present else "absent",
        prompt=" | ".join(work.prompts.texts[label]),
        stage="segment" if withheld else "",
        reason="low-confidence" if withheld else "" if present else segments[best].reason,
        message=f"confidence {figures['confidence']} is below {least}" if withheld else "",
        mask=path,
        frames=len(segments),
        area=int(areas.sum()),
        figures=figures,
        boxes=[segment.boxes.tolist() for segment in segments],
        seconds=seconds,
        digest=work.digest,
        geometry=image.grid.doubt,
    )
    return [(path, data), (str(preview_path(label, work.ref.id)), picture)], row


def _preview(
    rgb: np.ndarray, mask: np.ndarray, boxes: np.ndarray, frame: int, plain: dict[int, bytes]
) -> bytes:
    """Of a frame on which nothing is drawn, the same for every label."""
    if mask.any() or len(boxes):
        return preview(rgb, mask, boxes)
    if frame not in plain:
        plain[frame] = preview(rgb, mask, boxes)
    return plain[frame]


def _labelled(work: Work, image: Image, rows: Sequence[Outcome], with_crf: bool) -> Labelled:
    labels = work.prompts.labels
    frames = range(len(work.segments))
    return Labelled(
        ref=work.ref,
        frames=image.frames,
        grid=image.grid,
        masks={name: np.stack([work.segments[n][name].mask for n in frames]) for name in labels},
        withheld=frozenset(row.label for row in rows if row.status == "quarantined"),
        saliency={
            name: np.stack([work.saliency[n][name] for n in frames])
            for name in labels
            if work.saliency.get(0)
        },
        crf={
            name: np.stack([work.segments[n][name].crf_mask for n in frames])
            for name in labels
            if with_crf
        },
        boxes={name: [work.segments[n][name].boxes for n in frames] for name in labels},
        prompts={name: " | ".join(work.prompts.texts[name]) for name in labels},
        confidence={row.label: row.figures["confidence"] or 0.0 for row in rows},
        sources=work.sources,
    )


def _mean(name: str, segments: Sequence[Segmentation]) -> float | None:
    value = float(np.mean([getattr(segment, name) for segment in segments]))
    return None if np.isnan(value) else round(value, 4)
