"""A task model on the device: one network over batches of frames."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from torch import Tensor

from medclipsam.engine.backends.handover import Launched
from medclipsam.engine.errors import at_stage
from medclipsam.engine.run.device.executor import (
    NO_MAP,
    Executor,
    ExecutorContext,
    Frame,
    Step,
    quantise,
)
from medclipsam.engine.run.device.waiting import Waiting
from medclipsam.engine.run.work import Work
from medclipsam.engine.types import Segmentation
from medclipsam.engine.unet.pipeline import UnetPipeline, require_finite


class UnetExecutor(Executor):
    """Every stage of a ``UnetPipeline``; fit_image and refine_mask on the CPU threads."""

    def __init__(self, pipeline: UnetPipeline, context: ExecutorContext):
        super().__init__(context, pipeline.device)
        self.pipeline = pipeline
        self._prepared: Waiting[tuple[Frame, Tensor]] = Waiting("compute_saliency", self.meter)

    @property
    def _queued(self) -> bool:
        return bool(self._loaded or self._prepared)

    def _lower_memory(self, stage: str) -> str:
        return "--batch 1" if self.pipeline.batch > 1 else ""

    def _next_step(self, moving: bool, room: bool) -> Step | None:
        """A full batch first, then what fills one, then what is left."""
        if room and len(self._prepared) >= self.pipeline.batch:
            return self._infer
        if self._loaded and self._fitting + len(self._prepared) < 2 * self.pipeline.batch:
            return self._fit_next
        return self._infer if room and self._prepared and not moving else None

    def _fit(self, work: Work, index: int) -> Step:
        frame = Frame(work, index)
        return partial(self._prepared.put, (frame, self.pipeline.prepare(frame.rgb)))

    def _infer(self) -> None:
        taken = self._prepared.take(self.pipeline.batch)
        frames = [frame for frame, _ in taken]

        def compute() -> Launched:
            logits = self.pipeline.run([pixels for _, pixels in taken])
            return Launched((logits,), partial(self._take_logits, frames))

        failed = partial(self._one_by_one, frames)
        self._flights.launch("compute_saliency", len(frames), compute, failed)

    def _take_logits(self, frames: Sequence[Frame], logits: Tensor) -> None:
        for frame, answer in zip(frames, require_finite(logits), strict=True):
            self._refine(frame, partial(self._threshold, frame, answer))

    def _threshold(self, frame: Frame, logits: np.ndarray) -> Step:
        """refine_mask; on a CPU thread."""
        segments = self.pipeline.threshold(frame.rgb, logits)
        if self.keep_saliency:
            frame.saliency = {name: quantise(s.saliency) for name, s in segments.items()}
        segments = {n: replace(s, saliency=NO_MAP) for n, s in segments.items()}
        return partial(self._keep, frame, segments)

    def _segment_alone(self, frame: Frame) -> dict[str, Segmentation]:
        with at_stage("fit_image"):
            pixels = self.pipeline.prepare(frame.rgb)
        with self._at("compute_saliency"):
            logits = self.pipeline.infer([pixels])[0]
        with self._at("refine_mask"):
            return self.pipeline.threshold(frame.rgb, logits)
