"""One item on its way through a run, and what it leaves behind: mask files and rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from medclipsam.engine.errors import InputError
from medclipsam.engine.figure import preview
from medclipsam.engine.outputs import encode_mask, mask_path
from medclipsam.engine.report import FOLDER, preview_path
from medclipsam.engine.runfolder import FIGURES, RunFolder
from medclipsam.engine.types import Image, ItemRef, Outcome, Prompts, Segment


@dataclass
class Work:
    """One item on its way through the run."""

    ref: ItemRef
    prompts: Prompts
    image: Image | None = None
    error: InputError | None = None
    segments: list[dict[str, Segment]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)


def write_masks(folder: RunFolder, work: Work) -> list[Outcome]:
    """Make an item's files durable and say what its ledger rows are."""
    seconds = time.monotonic() - work.started
    if work.error is not None or work.image is None:
        error = work.error or InputError("read_image", "unreadable", "nothing was decoded")
        return [
            Outcome(
                item=work.ref.id,
                label=label,
                status="quarantined",
                prompt=" | ".join(texts),
                stage=error.stage,
                reason=error.reason,
                message=str(error),
                seconds=seconds,
            )
            for label, texts in work.prompts.texts.items()
        ]
    return [
        _write_label(folder, work, work.image, label, " | ".join(texts), seconds)
        for label, texts in work.prompts.texts.items()
    ]


def _write_label(
    folder: RunFolder, work: Work, image: Image, label: str, prompt: str, seconds: float
) -> Outcome:
    segments = [by_label[label] for by_label in work.segments]
    masks = np.stack([segment.mask for segment in segments])
    suffix, data = encode_mask(masks, image.grid)
    path = mask_path(label, work.ref, suffix)
    folder.write(str(path), data)
    areas = masks.sum((1, 2))
    best = int(areas.argmax())
    picture = preview(image.frames[best], masks[best], segments[best].boxes)
    folder.write(f"{FOLDER}/{preview_path(label, work.ref.id)}", picture)
    present = [segment for segment in segments if segment.status == "done"]
    return Outcome(
        item=work.ref.id,
        label=label,
        status="done" if present else "absent",
        prompt=prompt,
        reason="" if present else segments[best].reason,
        mask=str(path),
        frames=len(segments),
        area=int(areas.sum()),
        figures={name: _mean(name, present or segments) for name in FIGURES},
        boxes=[segment.boxes.tolist() for segment in segments],
        seconds=seconds,
    )


def _mean(name: str, segments: Sequence[Segment]) -> float | None:
    value = float(np.mean([getattr(segment, name) for segment in segments]))
    return None if np.isnan(value) else round(value, 4)
