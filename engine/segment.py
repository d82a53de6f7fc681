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
from medclipsam.engine.backends.handover import fetch, send, stage, upload
from medclipsam.engine.errors import BackendError
from medclipsam.engine.fit import normalise_rgb
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
        capture: bool = True,
    ) -> Segmenter:
        """SAM of ``bundle``; ``batch`` images per encoder call, ``boxes`` per decoder call; on CUDA
        as graphs if ``capture`` says so."""

        def graph(name: str, rows: int) -> Callable[..., Any]:
            return open_graph(bundle, name, device, backend, rows, capture, precision=precision)

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
            out += list(self.encoder(self.prepare(resized[start : start + self.batch])))
        return out

    def resize(self, rgb: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) → uint8 (h, w, 3); pixel work, for any CPU thread."""
        return resize_image(rgb, self.config)

    def prepare(self, resized: Sequence[np.ndarray]) -> Tensor:
        """uint8 (h, w, 3) images → normalised (B, 3, S, S) on the device, contiguous, with zeros
        below and right of each."""
        side = self.config.image_size
        squares = stage((len(resized), side, side, 3), torch.uint8, self.device)
        for square, image in zip(squares.numpy(), resized, strict=True):
            square[: image.shape[0], : image.shape[1]] = image
        pixels = send(squares, self.device).permute(0, 3, 1, 2)
        pixels = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        pixels = normalise_rgb(pixels, self.config.pixel_mean, self.config.pixel_std)
        for square, image in zip(pixels, resized, strict=True):
            square[:, image.shape[0] :], square[:, :, image.shape[1] :] = 0, 0
        return pixels

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

        Raises:
            BackendError: the device has no memory for a mask of this size.
        """
        drawn = fetch(self.device, *self.draw(embeddings, shapes, boxes))
        return self.gather(drawn, [len(group) for group in boxes])

    def draw(
        self,
        embeddings: Sequence[Tensor],
        shapes: Sequence[tuple[int, int]],
        boxes: Sequence[np.ndarray],
    ) -> list[Tensor]:
        """``segment`` up to what leaves the device; Args as there.

        Returns:
            For each pair with K ≥ 1 boxes a bool (H, W) union of its masks, its float32 (K,)
            estimates of IoU, and int64 (K, 2) pixels at logits above +1 and above −1.
        """
        if not any(map(len, boxes)):
            return []
        logits, ious = self.decode(embeddings, shapes, boxes)
        drawn, start = [], 0
        for group, shape in zip(boxes, shapes, strict=True):
            stop = start + len(group)
            if len(group):
                union, counts = self._unite(logits[start:stop], shape)
                drawn += [union, ious[start:stop], counts]
            start = stop
        return drawn

    def gather(self, drawn: Sequence[Tensor], boxes: Sequence[int]) -> list[BoxMasks | None]:
        """What ``draw`` gave, on the CPU, as masks of pairs with so many boxes each."""
        parts, out = iter(drawn), list[BoxMasks | None]()
        for count in boxes:
            if not count:
                out.append(None)
                continue
            union, ious, counts = next(parts), next(parts), next(parts)
            stability = counts[:, 0] / counts[:, 1].clamp_min(1)
            out.append(
                BoxMasks(
                    mask=union.numpy(),
                    predicted_iou=float(ious.clamp(0, 1).mean()),
                    stability=float(stability.mean()),
                )
            )
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
        pairs = zip(boxes, shapes, strict=True)
        scaled = upload(torch.cat([self._to_input(*pair) for pair in pairs]), self.device)
        logits, ious = [], []
        for start in range(0, len(owners), self.boxes):
            group = [embeddings[n] for n in owners[start : start + self.boxes]]
            low, iou = self.decoder(torch.stack(group), scaled[start : start + self.boxes])
            logits.append(low.float())
            ious.append(iou.float())
        return torch.cat(logits), torch.cat(ious)

    def _unite(self, logits: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Union and counts of one pair's masks, see ``draw``; one box after the other, so that
        float masks at source size are never held of more than one."""
        try:
            union, counts = torch.zeros(shape, dtype=torch.bool, device=logits.device), []
            for low in logits:
                full = self.to_source(low[None], shape)[0]
                counts.append(torch.stack([(full > 1.0).sum(), (full > -1.0).sum()]))
                union |= full > 0
        except torch.OutOfMemoryError as exc:
            raise BackendError(
                f"the device ran out of memory over one mask of {shape[0]} × {shape[1]} pixels "
                f"({str(exc)[:200]}), and no smaller batch cures that; leave such images out with "
                f"--max-pixels {shape[0] * shape[1] - 1}, or use --device cpu"
            ) from exc
        return union, torch.stack(counts)

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
