"""The zero-shot method on the device: saliency, SAM's encoder and its decoder, in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from torch import Tensor

from medclipsam.engine.errors import ConfigError, InputError, at_stage
from medclipsam.engine.pipeline import Found, Pipeline, to_numpy
from medclipsam.engine.run.executor import Executor, Frame, Step, Surroundings, quantise
from medclipsam.engine.saliency import SaliencyQueue
from medclipsam.engine.segment import BoxMasks
from medclipsam.engine.types import Segment


@dataclass(eq=False)
class ZeroShotFrame(Frame):
    """A frame and what the stages so far have found in it."""

    found: list[Found] = field(default_factory=list)
    masks: dict[str, BoxMasks | None] = field(default_factory=dict)


class ZeroShotExecutor(Executor):
    """Every stage of a ``Pipeline``; refine_mask on the CPU threads."""

    SAVER = "--set segment.batch=1 --set saliency.rows=16"

    def __init__(self, pipeline: Pipeline, around: Surroundings):
        super().__init__(around)
        self.pipeline = pipeline
        self._saliency = SaliencyQueue(pipeline.encoder, pipeline.config.saliency)
        self._asked: deque[ZeroShotFrame] = deque()
        self._boxed: deque[ZeroShotFrame] = deque()
        self._pairs: deque[tuple[ZeroShotFrame, Found, Tensor]] = deque()

    @property
    def _queued(self) -> bool:
        return bool(self._loaded or self._asked or self._boxed or self._pairs)

    def _next_step(self, moving: bool) -> Step | None:
        """Most downstream full batch first, then what is left."""
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

    def _ask(self) -> None:
        taken = self._next_frame()
        if taken is None:
            return
        frame = ZeroShotFrame(*taken)
        work = frame.work
        before = self._saliency.rows.waiting
        try:
            with self._at("encode_image"):
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
            with self._at("compute_saliency", rows, whole=False):
                self._saliency.rows.run()
        except Exception as exc:
            self._restart(exc)
            return
        self.meter.wait("compute_saliency", self._saliency.rows.waiting - before)
        self._collect()

    def _collect(self) -> None:
        """Hand frames whose rows are all embedded to the CPU threads."""
        try:
            with at_stage("compute_saliency"):
                for answer in self._saliency.answers():
                    cells = to_numpy(answer)
                    self.passed("compute_saliency")
                    frame = self._asked.popleft()  # not before: it is among those to restart
                    self._refine(frame, partial(self._find, frame, cells))
        except Exception as exc:
            self._restart(exc)

    def _restart(self, exc: Exception) -> None:
        """A batch of rows failed: its frames, which share it, are done again one by one."""
        frames = list(self._asked)
        self.meter.wait("compute_saliency", -self._saliency.rows.waiting)
        self._saliency.clear()
        self._asked.clear()
        self._one_by_one(frames, exc)

    def _find(self, frame: ZeroShotFrame, answer: tuple[np.ndarray, np.ndarray]) -> Step:
        """refine_mask and extract_boxes; on a CPU thread."""
        nothing = np.empty((0, 0), np.float32)
        for found in self.pipeline.refine(frame.rgb, frame.work.prompts, answer):
            if self.keep_saliency:
                frame.saliency[found.label] = quantise(found.saliency)
            frame.found.append(replace(found, saliency=nothing))
        return partial(self._take_refined, frame)

    def _take_refined(self, frame: ZeroShotFrame) -> None:
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
            with self._at("segment_encode", count):
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
            with self._at("segment_decode", len(pairs), whole=False):
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

    def _conclude(self, frame: ZeroShotFrame) -> None:
        try:
            segments = self._conclude_all(frame.found, frame.masks)
        except Exception as exc:
            self._fail(frame.work, exc)
        else:
            self._keep(frame, segments)

    def _conclude_all(
        self, found: Sequence[Found], masks: Mapping[str, BoxMasks | None]
    ) -> dict[str, Segment]:
        with at_stage("segment_decode"):
            segments = {f.label: self.pipeline.conclude(f, masks.get(f.label)) for f in found}
        if any(masks.values()):
            self.passed("segment_decode")
        return segments

    def _segment_alone(self, frame: Frame) -> dict[str, Segment]:
        pipeline, prompts = self.pipeline, frame.work.prompts
        alone = SaliencyQueue(pipeline.encoder, pipeline.config.saliency)
        with self._at("encode_image"):
            alone.ask(pipeline.ask(frame.rgb, prompts))
        with self._at("compute_saliency", alone.rows.waiting):
            while alone.rows.waiting:
                alone.rows.run()
            answers = [to_numpy(answer) for answer in alone.answers()]
        with self._at("refine_mask"):
            found = list(pipeline.refine(frame.rgb, prompts, answers[0]))
        boxed = [f for f in found if len(f.boxes)]
        masks: dict[str, BoxMasks | None] = {}
        if boxed:
            with self._at("segment_encode"):
                embedding = pipeline.segmenter.encode_image([frame.rgb])[0]
            with self._at("segment_decode", len(boxed), whole=False):
                drawn = pipeline.segmenter.segment(
                    [embedding] * len(boxed),
                    [frame.rgb.shape[:2]] * len(boxed),
                    [f.boxes for f in boxed],
                )
            masks = {f.label: mask for f, mask in zip(boxed, drawn, strict=True)}
        return self._conclude_all(found, masks)
