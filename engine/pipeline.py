"""The method itself: frames and prompts in, masks out. Refuses to know files.

fit → encode_image → compute_saliency → refine_mask → extract_boxes → segment

Absence first: after ``encode_image`` it is known which prompts the image may show, and only
these cost anything further.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medclipsam.engine.backends import refuse_gradients
from medclipsam.engine.backends.defaults import settle
from medclipsam.engine.backends.handover import fetch, send, stage
from medclipsam.engine.boxes import extract_boxes, select_boxes
from medclipsam.engine.config import EngineConfig
from medclipsam.engine.crf import DenseCrf, warm_up
from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.errors import at_stage
from medclipsam.engine.fit import fit_image, make_fit, unfit_map
from medclipsam.engine.presence import EMPTY_MASK, find_absence, is_present
from medclipsam.engine.prompts import check_wording
from medclipsam.engine.quality import agreement, border_contact, confidence
from medclipsam.engine.saliency import Answer, Question, Round, open_probe, run_probes
from medclipsam.engine.saliency.contrast import contrasts
from medclipsam.engine.saliency.rows import no_rows
from medclipsam.engine.segment import BoxMasks, Segmenter
from medclipsam.engine.types import Prompts, Segmentation
from medclipsam.engine.weights.bundle import Bundle

NO_BOXES = np.empty((0, 4), np.int32)

Located = tuple[Sequence[np.ndarray | None], np.ndarray]
"""Per prompt a map float32 (h, w) in [0, 1] over CLIP's square input, or None where none was
asked for, and contrasts float32 (P,)."""


@dataclass(frozen=True)
class Localization:
    """Where the stages before SAM see one prompt in one frame.

    Attributes:
        label: of the prompt.
        contrast: see ``Segmentation``.
        saliency: float32 (H, W) in [0, 1]; zeros where no map was asked for.
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
        config: every setting, none left to the device.
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
        """The stages; what ``config`` leaves to the device is settled.

        Raises:
            BackendError: see ``medclipsam.engine.backends``.
        """
        config = settle(config, bundle, device, backend)
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
                config.cuda_graphs,
            ),
            Segmenter.open(
                bundle,
                device,
                backend,
                config.segment.batch,
                config.segment.boxes,
                precision,
                config.cuda_graphs,
            ),
            config,
        )

    def segment(
        self, frames: Sequence[np.ndarray], prompts: Sequence[Prompts], maps: bool = True
    ) -> list[dict[str, Segmentation]]:
        """Segment frames, each with its own prompts.

        Args:
            frames: uint8 (H, W, 3), of any sizes.
            prompts: as many as frames.
            maps: see ``compute_saliency``.

        Returns:
            Per frame, label → what was found.
        """
        answers = list(self.compute_saliency(zip(frames, prompts, strict=True), maps))
        return self.draw(frames, prompts, answers)

    def draw(
        self,
        frames: Sequence[np.ndarray],
        prompts: Sequence[Prompts],
        answers: Sequence[Located],
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
        """Prompts → (P, D) on the CPU; each ensemble is encoded once and remembered."""
        return torch.stack([self._encode(texts) for texts in prompts.texts.values()])

    def _encode(self, texts: tuple[str, ...]) -> Tensor:
        if texts not in self._texts:
            if len(self._texts) >= 4096:  # a table of prompts may be as long as the archive
                self._texts.clear()
            encoded = self.encoder.encode_ensemble(texts)
            (self._texts[texts],) = fetch(self.encoder.device, encoded)
        return self._texts[texts]

    def fit(self, rgb: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) → uint8 (S, S, 3), CLIP's input; pixel work, for any CPU thread."""
        fit = make_fit(rgb.shape[0], rgb.shape[1], self.encoder.image_size, self.config.fit)
        return fit_image(rgb, fit)

    def to_pixels(self, squares: Sequence[np.ndarray]) -> Tensor:
        """What ``fit`` gave → normalised float32 (B, 3, S, S) on the device."""
        side, device = self.encoder.image_size, self.encoder.device
        staged = stage((len(squares), side, side, 3), torch.uint8, device)
        np.stack(squares, out=staged.numpy())
        images = send(staged, device)
        return self.encoder.normalise(images.permute(0, 3, 1, 2).float() / 255)

    def encode_image(self, squares: Sequence[np.ndarray]) -> Tensor:
        """What ``fit`` gave → float32 (B, D) unit embeddings on the CPU; waits for them."""
        return fetch(self.encoder.device, self.embed_squares(squares))[0]

    def embed_squares(self, squares: Sequence[np.ndarray]) -> Tensor:
        """What ``fit`` gave → float32 (B, D) unit embeddings on the device."""
        return self.encoder.embed(self.to_pixels(squares))

    def embed(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """uint8 (H, W, 3) frames → float32 (D,) unit embeddings, in order, consumed lazily."""
        squares = map(self.fit, frames)
        while group := list(islice(squares, self.encoder.rows)):
            yield from self.encode_image(group).numpy()

    def compute_saliency(
        self, asked: Iterable[tuple[np.ndarray, Prompts]], maps: bool = True
    ) -> Iterator[Located]:
        """(frame, prompts) pairs → maps and contrasts.

        In order, consumed lazily; masked images of all frames share batches of one shape,
        in which neighbours do not change a result.

        Args:
            maps: make a map for every prompt, also for those that are absent by the contrast.
        """
        return map(to_numpy, run_probes(self.encoder, self._open_probes(iter(asked), maps)))

    def _open_probes(
        self, asked: Iterator[tuple[np.ndarray, Prompts]], maps: bool
    ) -> Iterator[Round]:
        while group := list(islice(asked, self.encoder.rows)):
            squares = [self.fit(rgb) for rgb, _ in group]
            embeddings = self.encode_image(squares)
            for square, embedding, (_, prompts) in zip(squares, embeddings, group, strict=True):
                yield self.open_probe(square, embedding, prompts, maps)

    def open_probe(
        self, square: np.ndarray, embedding: Tensor, prompts: Prompts, maps: bool
    ) -> Round:
        """Where the prompts are in a frame; the last round finishes with an ``Answer``.

        Args:
            square: what ``fit`` gave of the frame.
            embedding: what ``encode_image`` gave of it.
            maps: see ``compute_saliency``.

        Raises:
            ConfigError: a prompt that the model cannot read.
        """
        self.check_prompts(prompts)
        texts = self.encode_prompts(prompts)
        nulls = [self._encode((text,)) for text in self.config.null_prompts]
        against = torch.stack(nulls) if nulls else texts[:0]
        contrast = contrasts(texts, against, embedding)
        present = is_present(contrast.numpy(), self.config.presence)
        wanted = torch.from_numpy(np.flatnonzero(present | maps))
        if not len(wanted):
            return no_rows(Answer(partial(torch.empty, 0, 0, 0), wanted, contrast))
        image = self.to_pixels([square])[0]
        question = Question(image, embedding, texts, against, wanted)
        return open_probe(self.encoder, question, self.config.saliency)

    def refine(self, rgb: np.ndarray, prompts: Prompts, answer: Located) -> Iterator[Localization]:
        """refine_mask and extract_boxes of one frame, prompt by prompt; runs on a CPU thread.

        Consumed lazily: a float map at source size is made when it is asked for.
        """
        present = is_present(answer[1], self.config.presence)
        fit = make_fit(rgb.shape[0], rgb.shape[1], self.encoder.image_size, self.config.fit)
        solver: DenseCrf | None = None
        for label, cells, contrast, shown in zip(prompts.labels, *answer, present, strict=True):
            saliency, mask = np.zeros(rgb.shape[:2], np.float32), np.zeros(rgb.shape[:2], bool)
            boxes, crf = NO_BOXES, "none"
            if cells is not None:
                saliency = np.clip(unfit_map(cells, fit), 0, 1)
            if cells is not None and saliency.any():
                solver = solver or DenseCrf(rgb, self.config.crf)
                mask, crf = solver.mask(saliency), solver.kind
                with at_stage("extract_boxes"):
                    boxes = select_boxes(mask, self.config.boxes)
            absence = find_absence(bool(shown), saliency, boxes)
            kept = NO_BOXES if absence else boxes
            yield Localization(label, float(contrast), saliency, mask, kept, absence, crf)

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


def to_numpy(answer: Answer) -> Located:
    """An answer with its maps made; the arithmetic that was left runs here."""
    maps = dict(zip(answer.wanted.tolist(), answer.saliency.numpy(), strict=True))
    return [maps.get(prompt) for prompt in range(len(answer.contrast))], answer.contrast.numpy()
