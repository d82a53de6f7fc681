"""The zero-shot method on the device: saliency, SAM's encoder and its decoder, in batches."""

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
from medclipsam.engine.run.work import Work
from medclipsam.engine.saliency import Answer, Probe, RowQueue
from medclipsam.engine.segment import BoxMasks
from medclipsam.engine.types import Segmentation

NO_PIXELS = np.empty((0, 0, 3), np.uint8)


@dataclass(eq=False)
class ZeroShotFrame(Frame):
    """A frame and what the stages so far have found in it.

    Attributes:
        square: uint8 (S, S, 3), what CLIP sees, until it is encoded.
        resized: uint8 (h, w, 3), what SAM sees, if it is asked.
    """

    square: np.ndarray = field(default_factory=lambda: NO_PIXELS)
    resized: np.ndarray = field(default_factory=lambda: NO_PIXELS)
    found: list[Localization] = field(default_factory=list)
    masks: dict[str, BoxMasks | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """A prompt in a frame, with the boxes that prompt SAM, and the frame's embedding."""

    frame: ZeroShotFrame
    found: Localization
    embedding: Tensor


class ZeroShotExecutor(Executor):
    """Every stage of a ``Pipeline``; fit_image and refine_mask on the CPU threads."""

    LOWER_MEMORY = "--set segment.batch=1 --set saliency.rows=16"

    def __init__(self, pipeline: Pipeline, context: ExecutorContext):
        super().__init__(context)
        self.pipeline = pipeline
        self._maps = self.keep_saliency or self.keep_crf  # of absent prompts, too
        self._fitted: Waiting[ZeroShotFrame] = Waiting("encode_image", self.meter)
        self._rows = RowQueue(pipeline.encoder)
        self._boxed: Waiting[ZeroShotFrame] = Waiting("segment_encode", self.meter)
        self._pairs: Waiting[Pair] = Waiting("segment_decode", self.meter)

    @property
    def _queued(self) -> bool:
        return bool(self._loaded or self._fitted or self._rows or self._boxed or self._pairs)

    def _next_step(self, moving: bool) -> Step | None:
        """Most downstream full batch first; then parts of batches, most upstream first, since
        what comes out of them fills others."""
        segmenter, most = self.pipeline.segmenter, self.pipeline.encoder.rows
        if sum(len(pair.found.boxes) for pair in self._pairs) >= segmenter.boxes:
            return self._decode
        if len(self._boxed) >= segmenter.batch:
            return self._encode_boxed
        if self._rows.full:
            return self._score
        if len(self._fitted) >= most:
            return self._encode
        if self._loaded and self._fitting + len(self._fitted) < 2 * most:
            return self._fit_next
        if moving:
            return None
        if self._fitted:
            return self._encode
        if self._rows:
            return self._score
        if self._boxed:
            return self._encode_boxed
        return self._decode if self._pairs else None

    def _fit(self, work: Work, index: int) -> Step:
        frame = ZeroShotFrame(work, index)
        frame.square = self.pipeline.fit(frame.rgb)
        return partial(self._fitted.put, frame)

    def _encode(self) -> None:
        """encode_image; what is not in an image is known then, and costs nothing further."""
        frames = self._fitted.take(self.pipeline.encoder.rows)
        embeddings = self._batch(
            "encode_image",
            frames,
            lambda: self.pipeline.encode_image([frame.square for frame in frames]),
        )
        if embeddings is None:
            return
        for frame, embedding in zip(frames, embeddings, strict=True):
            self._ask(frame, embedding)
        self._collect()

    def _ask(self, frame: ZeroShotFrame, embedding: Tensor) -> None:
        before = self._rows.waiting
        try:
            with self._at("compute_saliency", 0, whole=False):
                self._rows.add(self._open_probe(frame, embedding), frame)
        except ConfigError as exc:
            frame.work.error = InputError("encode_prompts", "no-prompt", str(exc))
            self._count_down(frame.work)
            return
        except Exception as exc:
            self._one_by_one([frame], exc)
            return
        frame.square = NO_PIXELS
        self.meter.wait("compute_saliency", self._rows.waiting - before)

    def _open_probe(self, frame: ZeroShotFrame, embedding: Tensor) -> Probe:
        return self.pipeline.open_probe(frame.square, embedding, frame.work.prompts, self._maps)

    def _score(self) -> None:
        before = self._rows.waiting
        try:
            with self._at("compute_saliency", min(before, self._rows.most), whole=False):
                self._rows.run()
        except Exception as exc:
            self._restart(exc, before)
            return
        self.meter.wait("compute_saliency", self._rows.waiting - before)
        self._collect()

    def _collect(self) -> None:
        """Hand frames whose rows are all embedded to the CPU threads; those without any are
        through."""
        try:
            with at_stage("compute_saliency"):
                for frame, answer in self._rows.finished():
                    if len(answer.wanted):
                        self._refine(frame, partial(self._localize, frame, answer))
                    else:
                        self._conclude(frame, answer)
        except Exception as exc:
            self._restart(exc, self._rows.waiting)

    def _restart(self, exc: Exception, waiting: int) -> None:
        """A batch of rows failed: the frames in the queue are done again one by one."""
        self.meter.wait("compute_saliency", -waiting)
        self._one_by_one(self._rows.clear(), exc)

    def _conclude(self, frame: ZeroShotFrame, answer: Answer) -> None:
        """No prompt is in this frame: there is nothing left to compute."""
        try:
            with at_stage("refine_mask"):
                found = self.pipeline.refine(frame.rgb, frame.work.prompts, to_numpy(answer))
                frame.found = [replace(each, saliency=NO_MAP) for each in found]
        except Exception as exc:
            self._fail(frame.work, exc)
            return
        self._take_localized(frame)

    def _localize(self, frame: ZeroShotFrame, answer: Answer) -> Step:
        """What is left of compute_saliency, refine_mask and extract_boxes; on a CPU thread."""
        with at_stage("compute_saliency"):
            located = to_numpy(answer)
        self.passed("compute_saliency")
        for found in self.pipeline.refine(frame.rgb, frame.work.prompts, located):
            if self.keep_saliency:
                frame.saliency[found.label] = quantise(found.saliency)
            frame.found.append(replace(found, saliency=NO_MAP))
        if any(len(found.boxes) for found in frame.found):
            with at_stage("segment_encode"):
                frame.resized = self.pipeline.segmenter.resize(frame.rgb)
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
            lambda: self.pipeline.segmenter.encode_resized([frame.resized for frame in frames]),
        )
        if embeddings is None:
            return
        for frame, embedding in zip(frames, embeddings, strict=True):
            frame.resized = NO_PIXELS
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
        with at_stage("fit_image"):
            square = pipeline.fit(frame.rgb)
        with self._at("encode_image"):
            (embedding,) = pipeline.encode_image([square])
        with self._at("compute_saliency"):
            rows.add(pipeline.open_probe(square, embedding, prompts, self._maps))
            while rows.waiting:
                rows.run()
            ((_, answer),) = rows.finished()
            located = to_numpy(answer)
        with self._at("refine_mask"):
            found = list(pipeline.refine(frame.rgb, prompts, located))
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
