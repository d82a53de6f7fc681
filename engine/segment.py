"""SAM: encode images once, decode all their boxes together, masks on the source grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medclipsam.engine.backends import open_graph
from medclipsam.engine.weights.bundle import Bundle
from medclipsam.engine.weights.models import SamConfig


@dataclass(frozen=True)
class BoxMasks:
    """What SAM says of one image's boxes.

    Attributes:
        mask: bool (H, W), union over the boxes.
        predicted_iou: mean of SAM's own estimates, clipped to [0, 1].
        stability: mean IoU of the masks at logits above +1 and above −1.
    """

    mask: np.ndarray
    predicted_iou: float
    stability: float


@dataclass(frozen=True)
class Segmenter:
    """Box-prompted SAM on one device.

    Images and boxes travel in batches of at most ``batch`` and ``boxes`` rows; results do not
    depend on how the work was grouped.
    """

    encoder: Callable[..., Tensor]
    decoder: Callable[..., tuple[Tensor, Tensor]]
    config: SamConfig
    device: torch.device
    batch: int
    boxes: int

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        device: torch.device,
        backend: str = "torch",
        batch: int = 4,
        boxes: int = 16,
        precision: str = "fp32",
    ) -> Segmenter:
        """SAM of ``bundle``; ``batch`` images per encoder call, ``boxes`` per decoder call."""

        def graph(name: str, rows: int) -> Callable[..., Any]:
            return open_graph(bundle, name, device, backend, batch=rows, precision=precision)

        return cls(
            encoder=graph("sam_encoder", batch),
            decoder=graph("sam_decoder", boxes),
            config=bundle.sam_config,
            device=device,
            batch=batch,
            boxes=boxes,
        )

    def encode_image(self, images: Sequence[np.ndarray]) -> list[Tensor]:
        """uint8 (H, W, 3) images of any sizes → one (C, g, g) embedding each."""
        return self.encode_resized([self.resize(rgb) for rgb in images])

    def encode_resized(self, resized: Sequence[np.ndarray]) -> list[Tensor]:
        """Images as ``resize`` gives them → one (C, g, g) embedding each."""
        out: list[Tensor] = []
        for start in range(0, len(resized), self.batch):
            group = [self.prepare(image) for image in resized[start : start + self.batch]]
            out += list(self.encoder(torch.stack(group)))
        return out

    def resize(self, rgb: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) → uint8 (h, w, 3); pixel work, for any CPU thread."""
        return resize_image(rgb, self.config)

    def prepare(self, resized: np.ndarray) -> Tensor:
        """uint8 (h, w, 3) → normalised (3, S, S) on the device, zeros below and right of it."""
        height, width = resized.shape[:2]
        pixels = torch.tensor(resized, device=self.device).permute(2, 0, 1).float()
        mean = torch.tensor(self.config.pixel_mean, device=self.device)[:, None, None]
        std = torch.tensor(self.config.pixel_std, device=self.device)[:, None, None]
        side = self.config.image_size
        return F.pad((pixels - mean) / std, (0, side - width, 0, side - height))

    def segment(
        self,
        embeddings: Sequence[Tensor],
        shapes: Sequence[tuple[int, int]],
        boxes: Sequence[np.ndarray],
    ) -> list[BoxMasks | None]:
        """Decode the boxes of many (image, prompt) pairs together.

        Args:
            embeddings: one (C, g, g) per pair.
            shapes: (H, W) of each pair's source image.
            boxes: (K, 4) XYXY in source pixels per pair; K may be 0.

        Returns:
            Per pair its masks, or None where it has no box.
        """
        if not any(map(len, boxes)):
            return [None] * len(boxes)
        logits, ious = self.decode(embeddings, shapes, boxes)
        out: list[BoxMasks | None] = []
        start = 0
        for group, shape in zip(boxes, shapes, strict=True):
            stop = start + len(group)
            out.append(
                self._gather(logits[start:stop], ious[start:stop], shape) if len(group) else None
            )
            start = stop
        return out

    def _to_input(self, boxes: np.ndarray, shape: tuple[int, int]) -> Tensor:
        """(K, 4) source boxes → float32 boxes in pixels of the square input."""
        height, width = inner_size(shape, self.config)
        factors = np.array([width / shape[1], height / shape[0]] * 2)
        return torch.from_numpy((boxes * factors).astype(np.float32))

    def decode(
        self,
        embeddings: Sequence[Tensor],
        shapes: Sequence[tuple[int, int]],
        boxes: Sequence[np.ndarray],
    ) -> tuple[Tensor, Tensor]:
        """What SAM's decoder says of all boxes, pair after pair; Args as ``segment``.

        Returns:
            float32 (N, g, g) low-resolution logits and float32 (N,) estimates of their IoU, for
            N ≥ 1 boxes.
        """
        owners = [n for n, group in enumerate(boxes) for _ in range(len(group))]
        scaled = torch.cat(
            [self._to_input(group, shape) for group, shape in zip(boxes, shapes, strict=True)]
        )
        logits, ious = [], []
        for start in range(0, len(owners), self.boxes):
            group = [embeddings[n] for n in owners[start : start + self.boxes]]
            wanted = scaled[start : start + self.boxes].to(self.device)
            low, iou = self.decoder(torch.stack(group), wanted)
            logits.append(low.float())
            ious.append(iou.float())
        return torch.cat(logits), torch.cat(ious)

    def _gather(self, logits: Tensor, ious: Tensor, shape: tuple[int, int]) -> BoxMasks:
        """The masks of one pair, one box after the other: of all of them at source size only
        their union and counts are ever held."""
        union, stabilities = torch.zeros(shape, dtype=torch.bool, device=logits.device), []
        for low in logits:
            full = self.to_source(low[None], shape)[0]
            above, below = (full > 1.0).sum(), (full > -1.0).sum()
            stabilities.append(above / below.clamp_min(1))
            union |= full > 0
        return BoxMasks(
            mask=union.cpu().numpy(),
            predicted_iou=float(ious.clamp(0, 1).mean()),
            stability=float(torch.stack(stabilities).mean()),
        )

    def to_source(self, logits: Tensor, shape: tuple[int, int]) -> Tensor:
        """(K, g, g) low-resolution logits → (K, H, W), as ``Sam.postprocess_masks`` does."""
        side = self.config.image_size
        height, width = inner_size(shape, self.config)
        large = F.interpolate(logits[:, None], (side, side), mode="bilinear", align_corners=False)
        inner = large[..., :height, :width]
        return F.interpolate(inner, shape, mode="bilinear", align_corners=False)[:, 0]


def inner_size(shape: tuple[int, ...], config: SamConfig) -> tuple[int, int]:
    """(h, w) of an (H, W) image inside the square input."""
    side = config.image_size
    if config.fit == "squash":
        return side, side
    scale = side / max(shape[0], shape[1])
    return max(1, int(shape[0] * scale + 0.5)), max(1, int(shape[1] * scale + 0.5))


def resize_image(rgb: np.ndarray, config: SamConfig) -> np.ndarray:
    """uint8 (H, W, 3) → uint8 (h, w, 3), of the size that it has inside the square input.

    The resampling is that of ``segment_anything``'s ``ResizeLongestSide``.
    """
    from torchvision.transforms.functional import resize, to_pil_image

    size = list(inner_size(rgb.shape[:2], config))
    return np.asarray(resize(to_pil_image(np.ascontiguousarray(rgb)), size))
