"""The zero-shot method on the device: saliency, SAM's encoder and its decoder, in batches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from torch import Tensor

from medclipsam.engine.backends.handover import Launched, fetch
from medclipsam.engine.errors import ConfigError, InputError, at_stage
from medclipsam.engine.pipeline import Localization, Pipeline, to_numpy
from medclipsam.engine.run.device.executor import (
    NO_MAP,
    Conclusion,
    Executor,
    ExecutorContext,
    Frame,
    Step,
    quantise,
)
from medclipsam.engine.run.device.waiting import Waiting
from medclipsam.engine.run.work import Work
from medclipsam.engine.saliency import Answer, Round, RowQueue
from medclipsam.engine.segment import BoxMasks
from medclipsam.engine.types import Segmentation

LEAST_ROWS = 16  # fewer leave a device idle
NO_PIXELS = np.empty((0, 0, 3), np.uint8)


@dataclass(eq=False)
class ZeroShotFrame(Frame):
    """A frame and what the stages so far have found in it.

    Attributes:
        square: uint8 (S, S, 3), what CLIP sees, until it is encoded.
        resized: uint8 (h, w, 3), what SAM sees, if it is asked.
        alone: it is done again by itself, since a batch with it failed.
    """

    square: np.ndarray = field(default_factory=lambda: NO_PIXELS)
    resized: np.ndarray = field(default_factory=lambda: NO_PIXELS)
    found: list[Localization] = field(default_factory=list)
    masks: dict[str, BoxMasks | None] = field(default_factory=dict)
    alone: bool = False


@dataclass(frozen=True)
class Pair:
    """A prompt in a frame, with the boxes that prompt SAM, and the frame's embedding."""

    frame: ZeroShotFrame
    found: Localization
    embedding: Tensor


class ZeroShotExecutor(Executor):
    """Every stage of a ``Pipeline``; fit_image, refine_mask and conclude on the CPU threads."""

    def __init__(self, pipeline: Pipeline, context: ExecutorContext):
        super().__init__(context, pipeline.encoder.device)
        self.pipeline = pipeline
        self._maps = self.keep_saliency or self.keep_crf  # of absent prompts, too
        self._fitted: Waiting[ZeroShotFrame] = Waiting("encode_image", self.meter)
        self._rows = RowQueue(pipeline.encoder)
        self._counted = 0  # rows that the meter knows of
        self._boxed: Waiting[ZeroShotFrame] = Waiting("segment_encode", self.meter)
        self._pairs: Waiting[Pair] = Waiting("segment_decode", self.meter)

    @property
    def _queued(self) -> bool:
        return bool(self._loaded or self._fitted or self._rows or self._boxed or self._pairs)

    def _lower_memory(self, stage: str) -> str:
        """Fewer at once, down to what keeps a device at work, and numbers of half the size."""
        config = self.pipeline.config
        name, now, least = {
            "segment_encode": ("segment.batch", config.segment.batch, 1),
            "segment_decode": ("segment.boxes", config.segment.boxes, 1),
        }.get(stage, ("saliency.rows", config.saliency.rows, LEAST_ROWS))
        lower = [f"--set {name}={least}"] if now > least else []
        if config.precision in ("fp32", "tf32") and self.pipeline.encoder.device.type == "cuda":
            lower.append("--precision bf16")
        return " ".join(lower)

    def _next_step(self, moving: bool, room: bool) -> Step | None:
        """Most downstream full batch first; then parts of batches, most upstream first, since
        what comes out of them fills others."""
        segmenter, most = self.pipeline.segmenter, self.pipeline.encoder.rows
        if room:
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
        if moving or not room or self._flights:
            return None
        if self._fitted:
            return self._encode
        if self._rows.waiting:
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

        def compute() -> Launched:
            embeddings = self.pipeline.embed_squares([frame.square for frame in frames])
            return Launched((embeddings,), partial(self._ask, frames))

        failed = partial(self._one_by_one, frames)
        self._flights.launch("encode_image", len(frames), compute, failed)

    def _ask(self, frames: Sequence[ZeroShotFrame], embeddings: Tensor) -> None:
        for frame, embedding in zip(frames, embeddings, strict=True):
            self._add(frame, embedding)
        self._collect()

    def _add(self, frame: ZeroShotFrame, embedding: Tensor) -> None:
        began = self._flights.mark()
        try:
            with self._flights.launching("compute_saliency", 0):
                self._rows.add(self._open_probe(frame, embedding), frame)
        except ConfigError as exc:
            frame.work.error = InputError("encode_prompts", "no-prompt", str(exc))
            self._count_down(frame.work)
            return
        except Exception as exc:
            self._one_by_one([frame], exc)
            return
        frame.square = NO_PIXELS
        for launched in self._rows.fetches():
            land = partial(self._land_rows, launched.land)
            launched = Launched(launched.tensors, land)
            self._flights.add("compute_saliency", began, launched, self._restart)

    def _open_probe(self, frame: ZeroShotFrame, embedding: Tensor) -> Round:
        return self.pipeline.open_probe(frame.square, embedding, frame.work.prompts, self._maps)

    def _score(self) -> None:
        def compute() -> Launched:
            launched = self._rows.launch()
            return Launched(launched.tensors, partial(self._land_rows, launched.land))

        items = min(self._rows.waiting, self._rows.most)
        self._flights.launch("compute_saliency", items, compute, self._restart, whole=False)

    def _land_rows(self, land: Callable[..., None], *answer: Tensor) -> None:
        land(*answer)
        self._collect()

    def _collect(self) -> None:
        """Hand frames whose rows are all embedded to the CPU threads."""
        self._count_rows()
        dismissed: list[Conclusion] = []
        try:
            with at_stage("compute_saliency"):
                for frame, answer in self._rows.finished():
                    if len(answer.wanted):
                        self._refine(frame, partial(self._localize, frame, answer))
                    else:  # no prompt is in this frame
                        dismissed.append((frame, partial(self._dismiss, frame, answer)))
        except Exception as exc:
            self._restart(exc)
        self._conclude(dismissed)

    def _restart(self, exc: Exception) -> None:
        """A batch of rows failed: the frames in the queue are done again one by one."""
        frames = self._rows.clear()
        self._count_rows()
        self._one_by_one(frames, exc)

    def _count_rows(self) -> None:
        self.meter.wait("compute_saliency", self._rows.waiting - self._counted)
        self._counted = self._rows.waiting

    def _dismiss(self, frame: ZeroShotFrame, answer: Answer) -> Step:
        """All that is said of a frame without any prompt; on a CPU thread."""
        with at_stage("refine_mask"):
            found = list(self.pipeline.refine(frame.rgb, frame.work.prompts, to_numpy(answer)))
        return partial(self._keep, frame, self._to_segmentations(found, {}))

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
            self._conclude([(frame, partial(self._complete, frame))])
        else:
            self._boxed.put(frame)

    def _encode_boxed(self) -> None:
        """segment_encode; embeddings stay on the device, so pairs need not wait for them."""
        frames = self._boxed.take(self.pipeline.segmenter.batch)

        def compute() -> Launched:
            resized = [frame.resized for frame in frames]
            embeddings = self.pipeline.segmenter.encode_resized(resized)
            for frame, embedding in zip(frames, embeddings, strict=True):
                frame.resized = NO_PIXELS
                for found in frame.found:
                    if len(found.boxes):
                        self._pairs.put(Pair(frame, found, embedding))
            return Launched((), lambda: None)

        failed = partial(self._one_by_one, frames)
        self._flights.launch("segment_encode", len(frames), compute, failed)

    def _decode(self) -> None:
        pairs = self._pairs.take(1)
        boxes = len(pairs[0].found.boxes)
        while self._pairs:
            boxes += len(self._pairs.first.found.boxes)
            if boxes > self.pipeline.segmenter.boxes:
                break
            pairs += self._pairs.take(1)

        def compute() -> Launched:
            return Launched(tuple(self._draw(pairs)), partial(self._take_masks, pairs))

        failed = partial(self._redraw, pairs)
        self._flights.launch("segment_decode", len(pairs), compute, failed, whole=False)

    def _draw(self, pairs: Sequence[Pair]) -> list[Tensor]:
        return self.pipeline.segmenter.draw(
            [pair.embedding for pair in pairs],
            [pair.frame.rgb.shape[:2] for pair in pairs],
            [pair.found.boxes for pair in pairs],
        )

    def _gather(self, pairs: Sequence[Pair], drawn: Sequence[Tensor]) -> list[BoxMasks | None]:
        return self.pipeline.segmenter.gather(drawn, [len(pair.found.boxes) for pair in pairs])

    def _take_masks(self, pairs: Sequence[Pair], *drawn: Tensor) -> None:
        masks, through = self._gather(pairs, drawn), list[Conclusion]()
        for pair, mask in zip(pairs, masks, strict=True):
            frame = pair.frame
            if frame.alone:
                continue
            frame.masks[pair.found.label] = mask
            if len(frame.masks) == len(frame.found):
                through.append((frame, partial(self._complete, frame)))
        self._conclude(through)

    def _redraw(self, pairs: Sequence[Pair], exc: Exception) -> None:
        """A batch of pairs failed: their frames are done again one by one."""
        frames = list({id(pair.frame): pair.frame for pair in pairs}.values())
        frames = [frame for frame in frames if not frame.alone]
        for frame in frames:
            frame.alone = True  # what the device still has of them is not taken
        self._pairs.keep(lambda pair: not pair.frame.alone)
        self._one_by_one(frames, exc)

    def _complete(self, frame: ZeroShotFrame) -> Step:
        """Every prompt of a frame has its masks: figures of each; on a CPU thread."""
        return partial(self._keep, frame, self._to_segmentations(frame.found, frame.masks))

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
            rows.drain()
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
                pairs = [Pair(alone, f, embedding) for f in boxed]
                drawn = fetch(pipeline.segmenter.device, *self._draw(pairs))
                found_masks = self._gather(pairs, drawn)
            masks = {f.label: mask for f, mask in zip(boxed, found_masks, strict=True)}
        return self._to_segmentations(found, masks)
