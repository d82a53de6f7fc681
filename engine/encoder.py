"""The CLIP side of a bundle as saliency methods see it: graphs plus what feeds them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medclipsam.engine.backends import open_graph, refuse_gradients
from medclipsam.engine.backends.handover import upload
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.fit import normalise_rgb
from medclipsam.engine.weights.bundle import Bundle

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClipEncoder:
    """Text and image graphs of one CLIP on one device.

    Attributes:
        text, features, score, lower, upper: graphs, see ``medclipsam.engine.backends``.
        tokenizer: texts → (T, L) token ids.
        image_size: side S of the square input.
        cells: side g of its grid of patches.
        mean, std: normalisation of RGB in [0, 1].
        logit_scale: factor from cosine to logit.
        device: where tensors live.
        rows: the most images, masked or whole, that one ``score`` call takes.
    """

    text: Callable[..., Tensor]
    features: Callable[..., tuple[Tensor, Tensor, Tensor]]
    score: Callable[..., Tensor]
    lower: Callable[..., Tensor]
    upper: Callable[..., Tensor]
    tokenizer: Any
    image_size: int
    cells: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    logit_scale: float
    device: torch.device
    rows: int = 64

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        device: torch.device,
        backend: str = "torch",
        rows: int = 64,
        target: str = "norm1",
        block: int = -1,
        depth: float = 2 / 3,
        precision: str = "fp32",
        capture: bool = True,
    ) -> ClipEncoder:
        """Graphs of ``bundle``.

        Args:
            target, block: the layer of ``features``.
            depth: share of the blocks that ``lower`` takes, the rest is ``upper``'s.
            precision: see ``medclipsam.engine.backends.arithmetic``.
            capture: on CUDA, launch work of one shape as a CUDA graph.
        """
        clip = bundle.clip
        total = len(clip.model.visual.trunk.blocks)  # type: ignore[union-attr,arg-type]
        if target == "norm2" and block % total == total - 1:
            log.warning(
                "saliency.target=norm2 of the last block is the published layer: with CLS "
                "pooling every gradient of a patch token is exactly 0 there, so the channels "
                "are chosen without regard to the prompt; use norm1 for anything but comparison"
            )
        split = min(round(depth * total), total - 1)

        def graph(name: str, batch: int | None, **settings: Any) -> Callable[..., Any]:
            return open_graph(
                *(bundle, name, device, backend, batch, capture), precision=precision, **settings
            )

        def differentiable(name: str) -> Callable[..., Any]:
            if backend == "torch":
                return graph(name, None, blocks=split)
            return lambda *_: refuse_gradients("saliency method m2ib", backend)

        return cls(
            text=graph("text", 1),
            features=graph("features", 1, target=target, block=block),
            score=graph("score", rows),
            lower=differentiable("lower"),
            upper=differentiable("upper"),
            tokenizer=clip.tokenizer,
            image_size=clip.image_size,
            cells=int(clip.model.visual.trunk.patch_embed.grid_size[0]),  # type: ignore[union-attr,index]
            mean=clip.mean,
            std=clip.std,
            logit_scale=float(clip.model.logit_scale.detach().exp()),  # type: ignore[operator]
            device=device,
            rows=rows,
        )

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Texts → float32 (T, D) unit rows, one by one so that batching changes nothing.

        Raises:
            ConfigError: a text has no word that the tokenizer knows.
        """
        return torch.cat([self._encode_one(text) for text in texts])

    def _encode_one(self, text: str) -> Tensor:
        tokens = self.tokenizer([text])
        used = int((tokens[0] != 0).sum())
        if used <= 2:
            raise ConfigError(f"the prompt {text!r} is empty; give it at least one word")
        unknown = getattr(getattr(self.tokenizer, "tokenizer", None), "unk_token_id", None)
        if unknown is not None and bool((tokens[0, 1 : used - 1] == unknown).all()):
            raise ConfigError(
                f"no word of the prompt {text!r} is in this bundle's vocabulary; "
                "use other words or another bundle"
            )
        return self.text(upload(tokens[:, :used], self.device))

    def encode_ensemble(self, texts: Sequence[str]) -> Tensor:
        """Several wordings of one prompt → (D,): the unit mean of their unit embeddings."""
        return F.normalize(self.encode_text(texts).mean(0), dim=0)

    def embed(self, pixels: Tensor) -> Tensor:
        """Normalised (B, 3, S, S) → float32 (B, D) unit embeddings, in batches of one shape."""
        return torch.cat([self.score(part) for part in pixels.split(self.rows)])

    def normalise(self, rgb: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] → normalised model input."""
        return normalise_rgb(rgb, self.mean, self.std)
