"""The zero-shot method on the device: saliency, SAM's encoder and its decoder, in batches."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from torch import Tensor

from medclipsam.engine.errors import ConfigError, InputError, at_stage
from medclipsam.engine.pipeline import Localization, Pipeline, to_numpy
from medclipsam.engine.run.executor import (
    NO_MAP,
    Executor,
    ExecutorContext,
    Frame,
    Step,
    Waiting,
    quantise,
)
from medclipsam.engine.saliency import RowQueue
from medclipsam.engine.segment import BoxMasks
from medclipsam.engine.types import Segmentation


@dataclass(eq=False)
class ZeroShotFrame(Frame):
    """A frame and what the stages so far have found in it."""

    found: list[Localization] = field(default_factory=list)
    masks: dict[str, BoxMasks | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """A prompt in a frame, with the boxes that prompt SAM, and the frame's embedding."""

    frame: ZeroShotFrame
    found: Localization
    embedding: Tensor


class ZeroShotExecutor(Executor):
    """Every stage of a ``Pipeline``; refine_mask on the CPU threads."""

    LOWER_MEMORY = "--set segment.batch=1 --set saliency.rows=16"

    def __init__(self, pipeline: Pipeline, context: ExecutorContext):
        super().__init__(context)
        self.pipeline = pipeline
        self._rows = RowQueue(pipeline.encoder)
        self._asked: deque[ZeroShotFrame] = deque()  # whose rows are in the queue
        self._boxed: Waiting[ZeroShotFrame] = Waiting("segment_encode", self.meter)
        self._pairs: Waiting[Pair] = Waiting("segment_decode", self.meter)

    @property
    def _queued(self) -> bool:
        return bool(self._loaded or self._asked or self._boxed or self._pairs)

    def _next_step(self, moving: bool) -> Step | None:
        """Most downstream full batch first, then what is left."""
        segmenter = self.pipeline.segmenter
        if sum(len(pair.found.boxes) for pair in self._pairs) >= segmenter.boxes:
            return self._decode
        if len(self._boxed) >= segmenter.batch:
            return self._encode_boxed
        if self._rows.full:
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
        before = self._rows.waiting
        try:
            with self._at("encode_image"):
                self._rows.add(self.pipeline.open_probe(frame.rgb, frame.work.prompts))
        except ConfigError as exc:
            frame.work.error = InputError("encode_prompts", "no-prompt", str(exc))
            self._count_down(frame.work)
            return
        except Exception as exc:
            self._one_by_one([frame], exc)
            return
        self.meter.wait("compute_saliency", self._rows.waiting - before)
        self._asked.append(frame)
        self._collect()

    def _score(self) -> None:
        rows = min(self._rows.waiting, self.pipeline.encoder.rows)
        try:
            with self._at("compute_saliency", rows, whole=False):
                self._rows.run()
        except Exception as exc:
            self._restart(exc)
            return
        self.meter.wait("compute_saliency", -rows)
        self._collect()

    def _collect(self) -> None:
        """Hand frames whose rows are all embedded to the CPU threads."""
        try:
            with at_stage("compute_saliency"):
                for answer in self._rows.finished():
                    cells = to_numpy(answer)
                    self.passed("compute_saliency")
                    frame = self._asked.popleft()  # not before: it is among those to restart
                    self._refine(frame, partial(self._localize, frame, cells))
        except Exception as exc:
            self._restart(exc)

    def _restart(self, exc: Exception) -> None:
        """A batch of rows failed: its frames, which share it, are done again one by one."""
        frames = list(self._asked)
        self.meter.wait("compute_saliency", -self._rows.waiting)
        self._rows.clear()
        self._asked.clear()
        self._one_by_one(frames, exc)

    def _localize(self, frame: ZeroShotFrame, answer: tuple[np.ndarray, np.ndarray]) -> Step:
        """refine_mask and extract_boxes; on a CPU thread."""
        for found in self.pipeline.refine(frame.rgb, frame.work.prompts, answer):
            if self.keep_saliency:
                frame.saliency[found.label] = quantise(found.saliency)
            frame.found.append(replace(found, saliency=NO_MAP))
        return partial(self._take_localized, frame)

    def _take_localized(self, frame: ZeroShotFrame) -> None:
        frame.masks = {found.label: None for found in frame.found if not len(found.boxes)}
        if len(frame.masks) == len(frame.found):
            self._complete(frame)
        else:
            self._boxed.put(frame)

    def _encode_boxed(self) -> None:
        frames = self._boxed.take(self.pipeline.segmenter.batch)
        embeddings = self._batch(
            "segment_encode",
            frames,
            lambda: self.pipeline.segmenter.encode_image([frame.rgb for frame in frames]),
        )
        if embeddings is None:
            return
        for frame, embedding in zip(frames, embeddings, strict=True):
            for found in frame.found:
                if len(found.boxes):
                    self._pairs.put(Pair(frame, found, embedding))

    def _decode(self) -> None:
        pairs = self._pairs.take(1)
        boxes = len(pairs[0].found.boxes)
        while self._pairs:
            boxes += len(self._pairs.first.found.boxes)
            if boxes > self.pipeline.segmenter.boxes:
                break
            pairs += self._pairs.take(1)
        frames = list({id(pair.frame): pair.frame for pair in pairs}.values())
        try:
            with self._at("segment_decode", len(pairs), whole=False):
                for pair, mask in zip(pairs, self._draw(pairs), strict=True):
                    pair.frame.masks[pair.found.label] = mask
        except Exception as exc:
            self._pairs.keep(lambda pair: pair.frame not in frames)
            self._one_by_one(frames, exc)
            return
        for frame in frames:
            if len(frame.masks) == len(frame.found):
                self._complete(frame)

    def _draw(self, pairs: Sequence[Pair]) -> list[BoxMasks | None]:
        return self.pipeline.segmenter.segment(
            [pair.embedding for pair in pairs],
            [pair.frame.rgb.shape[:2] for pair in pairs],
            [pair.found.boxes for pair in pairs],
        )

    def _complete(self, frame: ZeroShotFrame) -> None:
        """Every prompt of a frame has its masks."""
        try:
            segments = self._to_segmentations(frame.found, frame.masks)
        except Exception as exc:
            self._fail(frame.work, exc)
        else:
            self._keep(frame, segments)

    def _to_segmentations(
        self, found: Sequence[Localization], masks: Mapping[str, BoxMasks | None]
    ) -> dict[str, Segmentation]:
        with at_stage("segment_decode"):
            made = {f.label: self.pipeline.to_segmentation(f, masks.get(f.label)) for f in found}
        if any(masks.values()):
            self.passed("segment_decode")
        return made

    def _segment_alone(self, frame: Frame) -> dict[str, Segmentation]:
        pipeline, prompts, rows = self.pipeline, frame.work.prompts, RowQueue(self.pipeline.encoder)
        with self._at("encode_image"):
            rows.add(pipeline.open_probe(frame.rgb, prompts))
        with self._at("compute_saliency", rows.waiting):
            while rows.waiting:
                rows.run()
            (answer,) = map(to_numpy, rows.finished())
        with self._at("refine_mask"):
            found = list(pipeline.refine(frame.rgb, prompts, answer))
        boxed = [f for f in found if len(f.boxes)]
        masks: dict[str, BoxMasks | None] = {}
        if boxed:
            alone = ZeroShotFrame(frame.work, frame.index)
            with self._at("segment_encode"):
                (embedding,) = pipeline.segmenter.encode_image([frame.rgb])
            with self._at("segment_decode", len(boxed), whole=False):
                drawn = self._draw([Pair(alone, f, embedding) for f in boxed])
            masks = {f.label: mask for f, mask in zip(boxed, drawn, strict=True)}
        return self._to_segmentations(found, masks)
