"""Frames through the models: one executor for the device, CPU threads beside it.

The executor always takes the most downstream batch that is full, so that images finish
early and memory stays bounded. A part of a batch is run, padded, only when nothing is on
its way any more that could fill it. How frames were grouped does not change a byte:
batches have one shape and rows do not see each other.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor as Pool
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Event

import numpy as np
import torch
from torch import Tensor

from medclipsam.engine.errors import BackendError, ConfigError, InputError, MedclipsamError
from medclipsam.engine.inbox import Inbox
from medclipsam.engine.meter import Meter
from medclipsam.engine.pipeline import Found, Pipeline, to_numpy
from medclipsam.engine.saliency import SaliencyQueue
from medclipsam.engine.segment import BoxMasks
from medclipsam.engine.types import Segment
from medclipsam.engine.work import Work

FULL_SCALE = 65535  # of saliency kept as uint16
PATIENCE = 1.0  # seconds that a part of a batch waits for what is on its way


@dataclass(eq=False)
class Frame:
    """One frame of an item between two stages."""

    work: Work
    index: int
    found: list[Found] = field(default_factory=list)
    saliency: dict[str, np.ndarray] = field(default_factory=dict)
    masks: dict[str, BoxMasks | None] = field(default_factory=dict)

    @property
    def rgb(self) -> np.ndarray:
        assert self.work.image is not None
        return self.work.image.frames[self.index]


class Executor:
    """Runs every device stage, on the thread that calls ``run``.

    Args:
        pipeline: the stages.
        pool: CPU threads for refine_mask.
        inbox: where loaded items and refined frames arrive.
        done: called with each item whose frames are all through, or that failed.
        failed: called with an item and the traceback's exception, to be logged.
        keep_saliency: keep maps as uint16 in ``Work.saliency``.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        pool: Pool,
        inbox: Inbox,
        meter: Meter,
        done: Callable[[Work], None],
        failed: Callable[[Work, Exception], None],
        keep_saliency: bool = False,
    ):
        self.pipeline, self.pool, self.inbox, self.meter = pipeline, pool, inbox, meter
        self.done, self.failed, self.keep_saliency = done, failed, keep_saliency
        self._loaded: deque[tuple[Work, int]] = deque()
        self._saliency = SaliencyQueue(pipeline.encoder, pipeline.config.saliency)
        self._asked: deque[Frame] = deque()
        self._boxed: deque[Frame] = deque()
        self._pairs: deque[tuple[Frame, Found, Tensor]] = deque()

    def run(self, stop: Event) -> None:
        """Work until the inbox is closed and everything is done.

        Once ``stop`` is set, items that were loaded but not begun are dropped.
        """
        patient = True
        while True:
            # In this order: what ended before it was counted has left its event.
            closed, moving = self.inbox.closed, self.inbox.moving
            self.inbox.drain(block=False)
            if stop.is_set():
                self._drop_unbegun()
            step = self._next_step(moving > 0 and patient)
            if step:
                step()
                patient = True
            elif closed and not moving and not self._queued:
                return
            else:
                start = time.perf_counter()
                queued = self._queued
                patient = self.inbox.drain(block=True, timeout=PATIENCE if queued else None)
                self.meter.rest(time.perf_counter() - start, queued)

    def load(self, work: Work) -> None:
        """Take an item that has been read; called by an event of the inbox."""
        if work.error is not None or work.image is None:
            self.done(work)
            return
        work.segments = [{} for _ in work.image.frames]
        work.missing = len(work.segments)
        self._loaded.append((work, 0))
        self.meter.wait("encode_image", len(work.segments))

    @property
    def _queued(self) -> bool:
        return bool(self._loaded or self._asked or self._boxed or self._pairs)

    def _next_step(self, moving: bool) -> Callable[[], None] | None:
        """The scheduling policy: most downstream full batch first, then what is left."""
        segmenter = self.pipeline.segmenter
        if sum(len(found.boxes) for _, found, _ in self._pairs) >= segmenter.boxes:
            return self._decode
        if len(self._boxed) >= segmenter.batch:
            return self._encode_boxed
        if self._saliency.rows.full:
            return self._score
        if self._loaded:
            return self._ask
        if moving:
            return None
        if self._pairs:
            return self._decode
        if self._boxed:
            return self._encode_boxed
        return self._score if self._asked else None

    def _drop_unbegun(self) -> None:
        kept = [(work, index) for work, index in self._loaded if index]
        dropped = sum(work.missing for work, index in self._loaded if not index)
        self._loaded = deque(kept)
        if dropped:
            self.meter.wait("encode_image", -dropped)

    def _ask(self) -> None:
        work, index = self._loaded[0]
        if index + 1 < len(work.segments):
            self._loaded[0] = (work, index + 1)
        else:
            self._loaded.popleft()
        self.meter.wait("encode_image", -1)
        frame = Frame(work, index)
        if work.error is not None:
            self._count_down(work)
            return
        before = self._saliency.rows.waiting
        try:
            with self.meter.work("encode_image"):
                self._saliency.ask(self.pipeline.ask(frame.rgb, work.prompts))
        except ConfigError as exc:
            work.error = InputError("encode_prompts", "no-prompt", str(exc))
            self._count_down(work)
            return
        except Exception as exc:
            self._one_by_one([frame], exc)
            return
        self.meter.wait("compute_saliency", self._saliency.rows.waiting - before)
        self._asked.append(frame)
        self._collect()

    def _score(self) -> None:
        before = self._saliency.rows.waiting
        try:
            rows = min(before, self.pipeline.encoder.rows)
            with self.meter.work("compute_saliency", rows):
                self._saliency.rows.run()
        except Exception as exc:
            self._restart(exc)
            return
        self.meter.wait("compute_saliency", self._saliency.rows.waiting - before)
        self._collect()

    def _collect(self) -> None:
        """Hand frames whose rows are all embedded to the CPU threads."""
        try:
            for answer in self._saliency.answers():
                frame = self._asked.popleft()
                self.inbox.begin()
                self.meter.wait("refine_mask", 1)
                self.pool.submit(self._refine, frame, to_numpy(answer))
        except Exception as exc:
            self._restart(exc)

    def _restart(self, exc: Exception) -> None:
        """A batch of rows failed: its frames, which share it, are done again one by one."""
        frames = list(self._asked)
        self.meter.wait("compute_saliency", -self._saliency.rows.waiting)
        self._saliency.clear()
        self._asked.clear()
        self._one_by_one(frames, exc)

    def _refine(self, frame: Frame, answer: tuple[np.ndarray, np.ndarray]) -> None:
        """refine_mask and extract_boxes; on a CPU thread."""
        self.meter.wait("refine_mask", -1)
        try:
            with self.meter.work("refine_mask"):
                found = self.pipeline.refine(frame.rgb, frame.work.prompts, answer)
                if self.keep_saliency:
                    frame.saliency = {f.label: quantise(f.saliency) for f in found}
                nothing = np.empty((0, 0), np.float32)
                frame.found = [replace(f, saliency=nothing) for f in found]
        except Exception as exc:
            self.inbox.end(partial(self._fail, frame.work, exc))
        else:
            self.inbox.end(partial(self._take_refined, frame))

    def _take_refined(self, frame: Frame) -> None:
        for found in frame.found:
            if not len(found.boxes):
                frame.masks[found.label] = None
        if len(frame.masks) == len(frame.found):
            self._conclude(frame)
        else:
            self._boxed.append(frame)
            self.meter.wait("segment_encode", 1)

    def _encode_boxed(self) -> None:
        count = min(len(self._boxed), self.pipeline.segmenter.batch)
        frames = [self._boxed.popleft() for _ in range(count)]
        self.meter.wait("segment_encode", -count)
        try:
            with self.meter.work("segment_encode", count):
                embeddings = self.pipeline.segmenter.encode_image([f.rgb for f in frames])
        except Exception as exc:
            self._one_by_one(frames, exc)
            return
        for frame, embedding in zip(frames, embeddings, strict=True):
            pairs = [(frame, found, embedding) for found in frame.found if len(found.boxes)]
            self._pairs.extend(pairs)
            self.meter.wait("segment_decode", len(pairs))

    def _decode(self) -> None:
        pairs = [self._pairs.popleft()]
        boxes = len(pairs[0][1].boxes)
        while self._pairs:
            boxes += len(self._pairs[0][1].boxes)
            if boxes > self.pipeline.segmenter.boxes:
                break
            pairs.append(self._pairs.popleft())
        self.meter.wait("segment_decode", -len(pairs))
        frames = list({id(frame): frame for frame, _, _ in pairs}.values())
        try:
            with self.meter.work("segment_decode", len(pairs)):
                masks = self.pipeline.segmenter.segment(
                    [embedding for _, _, embedding in pairs],
                    [frame.rgb.shape[:2] for frame, _, _ in pairs],
                    [found.boxes for _, found, _ in pairs],
                )
                for (frame, found, _), mask in zip(pairs, masks, strict=True):
                    frame.masks[found.label] = mask
        except Exception as exc:
            kept = deque(pair for pair in self._pairs if pair[0] not in frames)
            self.meter.wait("segment_decode", len(kept) - len(self._pairs))
            self._pairs = kept
            self._one_by_one(frames, exc)
            return
        for frame in frames:
            if len(frame.masks) == len(frame.found):
                self._conclude(frame)

    def _conclude(self, frame: Frame) -> None:
        self._keep(
            frame,
            {f.label: self.pipeline.conclude(f, frame.masks[f.label]) for f in frame.found},
        )

    def _keep(self, frame: Frame, segments: dict[str, Segment]) -> None:
        """Put a frame's results into its item, without what nobody will write."""
        nothing = np.empty((0, 0), np.float32)
        frame.work.saliency[frame.index] = frame.saliency
        frame.work.segments[frame.index] = {
            label: replace(segment, saliency=nothing, crf_mask=nothing > 0)
            for label, segment in segments.items()
        }
        self._count_down(frame.work)

    def _one_by_one(self, frames: Sequence[Frame], exc: Exception) -> None:
        """Frames whose shared batch failed, each alone, to find the culprit."""
        _refuse_fatal(exc)
        for frame in frames:
            try:
                segments = self.pipeline.segment([frame.rgb], [frame.work.prompts])[0]
            except Exception as own:
                _refuse_fatal(own)
                self._fail(frame.work, own)
                continue
            if self.keep_saliency:
                frame.saliency = {name: quantise(s.saliency) for name, s in segments.items()}
            self._keep(frame, segments)

    def _fail(self, work: Work, exc: Exception) -> None:
        """One frame of an item cannot be processed: the item is given up."""
        if work.error is None:
            work.error = InputError("segment", "failed", f"{type(exc).__name__}: {exc}")
            self.failed(work, exc)
        self._count_down(work)

    def _count_down(self, work: Work) -> None:
        work.missing -= 1
        if work.missing == 0:
            self.done(work)


def _refuse_fatal(exc: Exception) -> None:
    """Raise what is no fault of an item: a device without memory, a backend that broke."""
    if isinstance(exc, torch.OutOfMemoryError):
        raise BackendError(
            f"the device ran out of memory ({exc}); lower it with --set segment.batch=1 "
            "--set saliency.rows=16"
        ) from exc
    if isinstance(exc, MedclipsamError) and not isinstance(exc, (ConfigError, InputError)):
        raise exc


def quantise(saliency: np.ndarray) -> np.ndarray:
    """float32 in [0, 1] → uint16 over its full range."""
    return np.rint(saliency * FULL_SCALE).astype(np.uint16)
