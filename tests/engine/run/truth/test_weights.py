"""The memory that an item holds is what a run counts for it."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from medclipsam.engine.prompts import make_prompts
from medclipsam.engine.run import streaming
from medclipsam.engine.run.device import zero_shot as zero_shot_executor
from medclipsam.engine.run.work import Work
from medclipsam.engine.segment import Segmenter
from medclipsam.engine.types import Image, ItemRef


@pytest.mark.parametrize(("labels", "colour"), [(1, False), (10, False), (10, True)])
@pytest.mark.parametrize("formats", [(), ("saliency", "crf")])
def test_the_weight_of_an_item_covers_what_its_stages_hold(engine, labels, colour, formats):
    """numpy's own count of bytes, from the map to what is kept; the CRF's filter apart."""
    side = 512
    rgb = np.random.default_rng(0).integers(0, 256, (side, side, 3 if colour else 1), np.uint8)
    frames = rgb[None] if colour else np.broadcast_to(rgb[None], (1, side, side, 3))
    prompts = make_prompts({f"label {n}": f"wording {n}" for n in range(labels)})
    work = Work(ItemRef("a"), prompts, Image(ItemRef("a"), frames, None))
    weight = streaming.weigh(work, formats, threads=1)
    cells = np.random.default_rng(1).random((labels, 12, 12)).astype(np.float32)
    free = replace(engine.pipeline, config=replace(engine.pipeline.config, crf=no_crf()))
    list(free.refine(frames[0], prompts, (cells, np.ones(labels, np.float32))))  # compiled
    tracemalloc.start()
    try:
        kept, drawn = [], []
        found = free.refine(frames[0], prompts, (cells, np.ones(labels, np.float32)))
        for one in found:
            kept.append(one.crf_mask)
            if "saliency" in formats:
                kept.append(zero_shot_executor.quantise(one.saliency))
            drawn.append(one.crf_mask.copy())  # as large as SAM's mask
        stacks = [np.stack([mask]) for mask in (kept if formats else kept[:1])]
        peak = tracemalloc.get_traced_memory()[1] + rgb.nbytes
    finally:
        tracemalloc.stop()
    assert len(stacks) and peak <= weight + streaming.FLOOR
    assert weight <= 3 * peak + streaming.FLOOR  # and is no wild guess


def no_crf():
    from medclipsam.engine.crf import CrfConfig

    return CrfConfig(iterations=0)


def test_sam_s_masks_at_source_size_are_never_held_together(engine, monkeypatch):
    """Forty boxes of one image: one float map at a time, and the union of all of them."""
    sizes, real = [], Segmenter.to_source

    def to_source(self, logits, shape):
        sizes.append(tuple(logits.shape[:1]))
        return real(self, logits, shape)

    monkeypatch.setattr(Segmenter, "to_source", to_source)
    segmenter = engine.pipeline.segmenter
    rgb = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    many = np.array([[n, n, n + 40, n + 30] for n in range(40)], np.int32)
    embedding = segmenter.encode_image([rgb])[0]
    (found,) = segmenter.segment([embedding], [rgb.shape[:2]], [many])
    assert set(sizes) == {(1,)}
    monkeypatch.undo()
    logits, _ = segmenter.decode([embedding], [rgb.shape[:2]], [many])
    full = segmenter.to_source(logits, rgb.shape[:2])
    np.testing.assert_array_equal(found.mask, (full > 0).any(0).numpy())
    above, below = (full > 1).sum((1, 2)), (full > -1).sum((1, 2))
    assert found.stability == pytest.approx(float((above / below.clamp_min(1)).mean()), abs=1e-6)
