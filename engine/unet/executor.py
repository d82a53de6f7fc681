"""A task model on the device: one network over batches of frames."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from functools import partial

import numpy as np
from torch import Tensor

from medclipsam.engine.run.executor import Executor, Frame, Step, Surroundings, quantise
from medclipsam.engine.types import Segment
from medclipsam.engine.unet.pipeline import UnetPipeline


class UnetExecutor(Executor):
    """Every stage of a ``UnetPipeline``; refine_mask on the CPU threads."""

    SAVER = "--batch 1"

    def __init__(self, pipeline: UnetPipeline, around: Surroundings):
        super().__init__(around)
        self.pipeline = pipeline
        self._prepared: deque[tuple[Frame, Tensor]] = deque()

    @property
    def _queued(self) -> bool:
        return bool(self._loaded or self._prepared)

    def _next_step(self, moving: bool) -> Step | None:
        """A full batch first, then what fills one, then what is left."""
        if len(self._prepared) >= self.pipeline.batch:
            return self._infer
        if self._loaded:
            return self._prepare
        return self._infer if self._prepared and not moving else None

    def _prepare(self) -> None:
        taken = self._next_frame()
        if taken is None:
            return
        frame = Frame(*taken)
        try:
            with self._at("encode_image"):
                pixels = self.pipeline.prepare(frame.rgb)
        except Exception as exc:
            self._one_by_one([frame], exc)
            return
        self._prepared.append((frame, pixels))
        self.meter.wait("compute_saliency", 1)

    def _infer(self) -> None:
        count = min(len(self._prepared), self.pipeline.batch)
        taken = [self._prepared.popleft() for _ in range(count)]
        frames = [frame for frame, _ in taken]
        self.meter.wait("compute_saliency", -count)
        try:
            with self._at("compute_saliency", count):
                answers = self.pipeline.infer([pixels for _, pixels in taken])
        except Exception as exc:
            self._one_by_one(frames, exc)
            return
        for frame, logits in zip(frames, answers, strict=True):
            self._refine(frame, partial(self._conclude, frame, logits))

    def _conclude(self, frame: Frame, logits: np.ndarray) -> Step:
        """refine_mask; on a CPU thread."""
        segments = self.pipeline.conclude(frame.rgb, logits)
        if self.keep_saliency:
            frame.saliency = {name: quantise(s.saliency) for name, s in segments.items()}
        nothing = np.empty((0, 0), np.float32)
        segments = {n: replace(s, saliency=nothing) for n, s in segments.items()}
        return partial(self._keep, frame, segments)

    def _segment_alone(self, frame: Frame) -> dict[str, Segment]:
        with self._at("encode_image"):
            pixels = self.pipeline.prepare(frame.rgb)
        with self._at("compute_saliency"):
            logits = self.pipeline.infer([pixels])[0]
        with self._at("refine_mask"):
            return self.pipeline.conclude(frame.rgb, logits)
