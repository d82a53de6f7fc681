"""The method itself: frames and prompts in, masks out. Refuses to know files.

encode_image → compute_saliency → refine_mask → extract_boxes → segment
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medclipsam.engine.boxes import extract_boxes, select_boxes
from medclipsam.engine.bundle import Bundle
from medclipsam.engine.config import EngineConfig
from medclipsam.engine.crf import DenseCrf, warm_up
from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.fit import fit_image, make_fit, unfit_map
from medclipsam.engine.saliency import Question, compute_saliency
from medclipsam.engine.segment import BoxMasks, Segmenter
from medclipsam.engine.types import Prompts, Segment

Mapper = Callable[..., Iterable[Any]]

ABSENT_REASONS = {
    "not-in-image": "the image is closer to a null prompt or another prompt than to this one",
    "no-saliency": "nothing in the image speaks for the prompt",
    "no-component": "the refined saliency holds no component of the smallest area",
    "empty-mask": "SAM drew nothing inside the boxes",
}


@dataclass(frozen=True)
class Found:
    """One (frame, prompt) on its way: what the stages before SAM have found."""

    frame: int
    label: str
    contrast: float
    saliency: np.ndarray
    crf_mask: np.ndarray
    boxes: np.ndarray
    reason: str
    crf: str


@dataclass
class Pipeline:
    """All stages over one bundle on one device.

    Attributes:
        encoder: CLIP.
        segmenter: SAM.
        config: every setting.
    """

    encoder: ClipEncoder
    segmenter: Segmenter
    config: EngineConfig
    _texts: dict[tuple[str, ...], Tensor] = field(default_factory=dict)

    @classmethod
    def open(
        cls, bundle: Bundle, config: EngineConfig, device: torch.device, backend: str = "torch"
    ) -> Pipeline:
        saliency, precision = config.saliency, config.precision
        warm_up(config.crf)
        extract_boxes(np.ones((2, 2), bool))  # compiled before worker threads start, too
        return cls(
            ClipEncoder.open(
                bundle,
                device,
                backend,
                saliency.rows,
                saliency.target,
                saliency.block,
                saliency.depth,
                precision,
            ),
            Segmenter.open(
                bundle, device, backend, config.segment.batch, config.segment.boxes, precision
            ),
            config,
        )

    def segment(
        self,
        frames: Sequence[np.ndarray],
        prompts: Sequence[Prompts],
        mapper: Mapper = map,
    ) -> list[dict[str, Segment]]:
        """Segment frames, each with its own prompts.

        Args:
            frames: uint8 (H, W, 3), of any sizes.
            prompts: as many as frames.
            mapper: ``map`` or a thread pool's; runs the CPU stages.

        Returns:
            Per frame, label → what was found.
        """
        answers = list(self.compute_saliency(zip(frames, prompts, strict=True)))
        return self.draw(frames, prompts, answers, mapper)

    def draw(
        self,
        frames: Sequence[np.ndarray],
        prompts: Sequence[Prompts],
        answers: Sequence[tuple[np.ndarray, np.ndarray]],
        mapper: Mapper = map,
    ) -> list[dict[str, Segment]]:
        """Everything after ``compute_saliency``, whose answers it takes; else as ``segment``."""
        solvers = list(mapper(lambda rgb: DenseCrf(rgb, self.config.crf), frames))
        work = [
            (solvers[n], frames[n].shape[:2], n, label, float(contrasts[p]), cells[p])
            for n, (cells, contrasts) in enumerate(answers)
            for p, label in enumerate(prompts[n].labels)
        ]
        found = list(mapper(self._find_boxes, work))
        boxed = sorted({f.frame for f in found if len(f.boxes)})
        embeddings = dict(
            zip(boxed, self.segmenter.encode_image([frames[n] for n in boxed]), strict=True)
        )
        chosen = [f for f in found if len(f.boxes)]
        masks = self.segmenter.segment(
            [embeddings[f.frame] for f in chosen],
            [frames[f.frame].shape[:2] for f in chosen],
            [f.boxes for f in chosen],
        )
        drawn = dict(zip(map(id, chosen), masks, strict=True))
        out: list[dict[str, Segment]] = [{} for _ in frames]
        for f in found:
            out[f.frame][f.label] = _conclude(f, drawn.get(id(f)))
        return out

    def encode_prompts(self, prompts: Prompts) -> Tensor:
        """Prompts → (P, D); each ensemble is encoded once and remembered."""
        return torch.stack([self._encode(texts) for texts in prompts.texts.values()])

    def _encode(self, texts: tuple[str, ...]) -> Tensor:
        if texts not in self._texts:
            if len(self._texts) >= 4096:  # a table of prompts may be as long as the archive
                self._texts.clear()
            self._texts[texts] = self.encoder.encode_ensemble(texts)
        return self._texts[texts]

    def compute_saliency(
        self, asked: Iterable[tuple[np.ndarray, Prompts]]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(frame, prompts) pairs → maps float32 (P, h, w) in [0, 1] and contrasts (P,).

        In order, consumed lazily; masked images of all frames share batches of one shape,
        in which neighbours do not change a result.
        """
        nulls = [self._encode((text,)) for text in self.config.null_prompts]
        questions = (self._ask(rgb, self.encode_prompts(p), nulls) for rgb, p in asked)
        for answer in compute_saliency(self.encoder, questions, self.config.saliency):
            yield answer.saliency.cpu().numpy(), answer.presence.cpu().numpy()

    def _ask(self, rgb: np.ndarray, texts: Tensor, nulls: list[Tensor]) -> Question:
        fit = make_fit(rgb.shape[0], rgb.shape[1], self.encoder.image_size, self.config.fit)
        square = torch.from_numpy(fit_image(rgb, fit)).to(self.encoder.device)
        image = square.permute(2, 0, 1).float() / 255
        return Question(image, texts, torch.stack(nulls) if nulls else texts[:0])

    def _find_boxes(
        self, work: tuple[DenseCrf, tuple[int, int], int, str, float, np.ndarray]
    ) -> Found:
        """refine_mask and extract_boxes of one (frame, prompt); runs on a CPU thread."""
        solver, shape, frame, label, contrast, cells = work
        fit = make_fit(*shape, self.encoder.image_size, self.config.fit)
        saliency = np.clip(unfit_map(cells, fit), 0, 1)
        empty = np.zeros(saliency.shape, bool)
        none = np.empty((0, 4), np.int32)
        if not saliency.any():
            return Found(frame, label, contrast, saliency, empty, none, "no-saliency", "none")
        mask = solver.mask(saliency)
        boxes = select_boxes(mask, self.config.boxes)
        reason = "" if len(boxes) else "no-component"
        if self.config.presence is not None and contrast < self.config.presence:
            boxes, reason = none, "not-in-image"
        return Found(frame, label, contrast, saliency, mask, boxes, reason, solver.kind)


def _conclude(found: Found, masks: BoxMasks | None) -> Segment:
    if masks is None or not masks.mask.any():
        return Segment(
            status="absent",
            mask=np.zeros(found.saliency.shape, bool),
            boxes=found.boxes,
            saliency=found.saliency,
            crf_mask=found.crf_mask,
            crf=found.crf,
            reason=found.reason or "empty-mask",
            contrast=found.contrast,
        )
    return Segment(
        status="done",
        mask=masks.mask,
        boxes=found.boxes,
        saliency=found.saliency,
        crf_mask=found.crf_mask,
        crf=found.crf,
        contrast=found.contrast,
        predicted_iou=masks.predicted_iou,
        stability=masks.stability,
        confidence=masks.predicted_iou * masks.stability,
    )
