"""The method itself: frames and prompts in, masks out. Refuses to know files.

encode_image → compute_saliency → refine_mask → extract_boxes → segment
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medclipsam.engine.backends import refuse_gradients
from medclipsam.engine.boxes import extract_boxes, select_boxes
from medclipsam.engine.config import EngineConfig
from medclipsam.engine.crf import DenseCrf, warm_up
from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.errors import at_stage
from medclipsam.engine.fit import Fit, fit_image, make_fit, unfit_map
from medclipsam.engine.presence import EMPTY_MASK, find_absence
from medclipsam.engine.prompts import check_wording
from medclipsam.engine.quality import agreement, border_contact, confidence
from medclipsam.engine.saliency import Answer, Probe, Question, open_probe, run_probes
from medclipsam.engine.segment import BoxMasks, Segmenter
from medclipsam.engine.types import Prompts, Segmentation
from medclipsam.engine.weights.bundle import Bundle

NO_BOXES = np.empty((0, 4), np.int32)


@dataclass(frozen=True)
class Localization:
    """Where the stages before SAM see one prompt in one frame.

    Attributes:
        label: of the prompt.
        contrast: see ``Segmentation``.
        saliency: float32 (H, W) in [0, 1].
        crf_mask: bool (H, W), the refined saliency.
        boxes: int32 (K, 4) XYXY in pixels, which prompt SAM; none where it is absent.
        absence: why it is absent, see ``medclipsam.engine.presence``, or empty.
        crf: the filter that refined it, see ``DenseCrf.kind``.
    """

    label: str
    contrast: float
    saliency: np.ndarray
    crf_mask: np.ndarray
    boxes: np.ndarray
    absence: str
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
    _checked: set[tuple[tuple[str, tuple[str, ...]], ...]] = field(default_factory=set)

    @classmethod
    def open(
        cls, bundle: Bundle, config: EngineConfig, device: torch.device, backend: str = "torch"
    ) -> Pipeline:
        saliency, precision = config.saliency, config.precision
        if saliency.method == "m2ib" and backend != "torch":
            refuse_gradients("saliency method m2ib", backend)
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
        self, frames: Sequence[np.ndarray], prompts: Sequence[Prompts]
    ) -> list[dict[str, Segmentation]]:
        """Segment frames, each with its own prompts.

        Args:
            frames: uint8 (H, W, 3), of any sizes.
            prompts: as many as frames.

        Returns:
            Per frame, label → what was found.
        """
        answers = list(self.compute_saliency(zip(frames, prompts, strict=True)))
        return self.draw(frames, prompts, answers)

    def draw(
        self,
        frames: Sequence[np.ndarray],
        prompts: Sequence[Prompts],
        answers: Sequence[tuple[np.ndarray, np.ndarray]],
    ) -> list[dict[str, Segmentation]]:
        """Everything after ``compute_saliency``, whose answers it takes; else as ``segment``."""
        found = [list(self.refine(*frame)) for frame in zip(frames, prompts, answers, strict=True)]
        boxed = [n for n, group in enumerate(found) if any(len(f.boxes) for f in group)]
        embeddings = dict(
            zip(boxed, self.segmenter.encode_image([frames[n] for n in boxed]), strict=True)
        )
        chosen = [(n, f) for n, group in enumerate(found) for f in group if len(f.boxes)]
        masks = self.segmenter.segment(
            [embeddings[n] for n, _ in chosen],
            [frames[n].shape[:2] for n, _ in chosen],
            [f.boxes for _, f in chosen],
        )
        drawn = {id(f): mask for (_, f), mask in zip(chosen, masks, strict=True)}
        return [
            {f.label: self.to_segmentation(f, drawn.get(id(f))) for f in group} for group in found
        ]

    def check_prompts(self, prompts: Prompts) -> None:
        """Refuse prompts, and null prompts, that the model does not read as they are meant.

        Raises:
            ConfigError: see ``check_wording``.
        """
        key = tuple(prompts.texts.items())
        if key not in self._checked:
            check_wording(self.encoder.tokenizer, prompts, self.config.null_prompts)
            if len(self._checked) >= 4096:
                self._checked.clear()
            self._checked.add(key)

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
        probes = (self.open_probe(rgb, wanted) for rgb, wanted in asked)
        return map(to_numpy, run_probes(self.encoder, probes))

    def embed(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """uint8 (H, W, 3) frames → float32 (D,) unit embeddings, in order, consumed lazily."""
        for rgb in frames:
            image = self.encoder.normalise(self._to_square(rgb)[None])
            rows = image.expand(self.encoder.rows, -1, -1, -1).contiguous()
            yield self.encoder.score(rows)[0].cpu().numpy()

    def _to_square(self, rgb: np.ndarray) -> Tensor:
        """float32 (3, S, S) in [0, 1] on the device."""
        fit = make_fit(rgb.shape[0], rgb.shape[1], self.encoder.image_size, self.config.fit)
        square = torch.from_numpy(fit_image(rgb, fit)).to(self.encoder.device)
        return square.permute(2, 0, 1).float() / 255

    def open_probe(self, rgb: np.ndarray, prompts: Prompts) -> Probe:
        """Encode a frame; the probe finishes with its ``Answer``. Args and errors as ``ask``."""
        return open_probe(self.encoder, self.ask(rgb, prompts), self.config.saliency)

    def ask(self, rgb: np.ndarray, prompts: Prompts) -> Question:
        """One frame and its prompts as the model takes them.

        Raises:
            ConfigError: a prompt that the model cannot read.
        """
        self.check_prompts(prompts)
        nulls = [self._encode((text,)) for text in self.config.null_prompts]
        texts = self.encode_prompts(prompts)
        return Question(self._to_square(rgb), texts, torch.stack(nulls) if nulls else texts[:0])

    def refine(
        self, rgb: np.ndarray, prompts: Prompts, answer: tuple[np.ndarray, np.ndarray]
    ) -> Iterator[Localization]:
        """refine_mask and extract_boxes of one frame, prompt by prompt; runs on a CPU thread.

        Consumed lazily: a float map at source size is made when it is asked for.
        """
        solver = DenseCrf(rgb, self.config.crf)
        fit = make_fit(rgb.shape[0], rgb.shape[1], self.encoder.image_size, self.config.fit)
        for label, cells, contrast in zip(prompts.labels, *answer, strict=True):
            yield self._localize(solver, fit, label, cells, float(contrast))

    def _localize(
        self, solver: DenseCrf, fit: Fit, label: str, cells: np.ndarray, contrast: float
    ) -> Localization:
        saliency = np.clip(unfit_map(cells, fit), 0, 1)
        mask, boxes, crf = np.zeros(saliency.shape, bool), NO_BOXES, "none"
        if saliency.any():
            mask, crf = solver.mask(saliency), solver.kind
            with at_stage("extract_boxes"):
                boxes = select_boxes(mask, self.config.boxes)
        absence = find_absence(contrast, self.config.presence, saliency, boxes)
        return Localization(
            label, contrast, saliency, mask, NO_BOXES if absence else boxes, absence, crf
        )

    def to_segmentation(self, found: Localization, masks: BoxMasks | None) -> Segmentation:
        """The end of one (frame, prompt); ``masks`` is None where it had no box."""
        known: dict[str, Any] = {
            "boxes": found.boxes,
            "saliency": found.saliency,
            "crf_mask": found.crf_mask,
            "crf": found.crf,
            "contrast": found.contrast,
        }
        if masks is None or not masks.mask.any():
            nothing = np.zeros(found.crf_mask.shape, bool)
            return Segmentation("absent", nothing, reason=found.absence or EMPTY_MASK, **known)
        figures = {
            "predicted_iou": masks.predicted_iou,
            "stability": masks.stability,
            "contrast": found.contrast,
            "agreement": agreement(found.crf_mask, masks.mask),
            "area_share": float(masks.mask.mean()),
            "border": border_contact(masks.mask),
        }
        sure = confidence(figures, self.config.confidence)
        return Segmentation("done", masks.mask, confidence=sure, **known | figures)


def to_numpy(answer: Answer) -> tuple[np.ndarray, np.ndarray]:
    """Maps float32 (P, h, w) and contrasts (P,) of an answer."""
    return answer.saliency.cpu().numpy(), answer.contrast.cpu().numpy()
