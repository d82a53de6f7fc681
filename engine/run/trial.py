"""Whether masks stay the same in bf16: tried on the first images of an archive.

Asked once for weights and device, where ``--precision auto`` has nothing on record.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from medclipsam.engine.archive import Archive, Decoders, Limits
from medclipsam.engine.errors import InputError
from medclipsam.engine.evaluation.metrics import iou
from medclipsam.engine.pipeline import Pipeline
from medclipsam.engine.prompts import PromptTable
from medclipsam.engine.types import Prompts

IMAGES, ENTRIES = 16, 64  # images to compare, and entries to look for them in

Sample = tuple[np.ndarray, Prompts]  # uint8 (H, W, 3) and what is looked for in it


def take_samples(
    archive: Archive, prompts: Prompts | PromptTable, limits: Limits
) -> Iterator[Sample]:
    """The middle frame of each of the first images that can be read."""
    with Decoders(1, limits) as decoders:
        for entry in islice(archive, ENTRIES):
            if isinstance(prompts, Prompts):
                wanted: Prompts | None = prompts
            else:
                wanted = prompts.by_item.get(entry.ref.id)
            if wanted is None:
                continue
            try:
                frames = decoders.decode(entry).frames
            except InputError:  # the run will say so
                continue
            yield np.ascontiguousarray(frames[len(frames) // 2]), wanted


def compare(exact: Pipeline, other: Pipeline, samples: Iterator[Sample]) -> dict[str, float]:
    """IoU of the masks of two pipelines.

    Returns:
        ``images``, ``masks`` that either has drawn, their ``mean_iou`` and ``worst_iou``.
    """
    images, found = 0, []
    for rgb, prompts in islice(samples, IMAGES):
        images += 1
        one, two = (p.segment([rgb], [prompts], maps=False)[0] for p in (exact, other))
        pairs = [(one[label].mask, two[label].mask) for label in one]
        found += [iou(a, b) for a, b in pairs if a.any() or b.any()]
    return {
        "images": images,
        "masks": len(found),
        "mean_iou": float(np.mean(found)) if found else 0.0,
        "worst_iou": float(np.min(found)) if found else 0.0,
    }
