"""The CLIP side of a bundle as saliency methods see it: graphs plus what feeds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medclipsam.engine.backends import open_graph
from medclipsam.engine.bundle import Bundle
from medclipsam.engine.errors import ConfigError
from medclipsam.engine.fit import normalise_rgb


@dataclass(frozen=True)
class ClipEncoder:
    """Text and image graphs of one CLIP on one device.

    Attributes:
        text, features, score: graphs, see ``medclipsam.engine.backends``.
        tokenizer: texts → (T, L) token ids.
        image_size: side S of the square input.
        mean, std: normalisation of RGB in [0, 1].
        logit_scale: factor from cosine to logit.
        device: where tensors live.
        rows: how many masked images one ``score`` call takes; shorter batches are padded.
    """

    text: Callable[..., Tensor]
    features: Callable[..., tuple[Tensor, Tensor, Tensor]]
    score: Callable[..., Tensor]
    tokenizer: Any
    image_size: int
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
    ) -> ClipEncoder:
        """Graphs of ``bundle``; ``target`` and ``block`` choose the layer of ``features``."""
        clip = bundle.clip
        return cls(
            text=open_graph(bundle, "text", device, backend),
            features=open_graph(bundle, "features", device, backend, target=target, block=block),
            score=open_graph(bundle, "score", device, backend),
            tokenizer=clip.tokenizer,
            image_size=clip.image_size,
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
        return self.text(tokens[:, :used].to(self.device))

    def encode_ensemble(self, texts: Sequence[str]) -> Tensor:
        """Several wordings of one prompt → (D,): the unit mean of their unit embeddings."""
        return F.normalize(self.encode_text(texts).mean(0), dim=0)

    def normalise(self, rgb: Tensor) -> Tensor:
        """(B, 3, S, S) in [0, 1] → normalised model input."""
        return normalise_rgb(rgb, self.mean, self.std)

    def embed(self, count: int, make: Callable[[int, int], Tensor]) -> Tensor:
        """Embed ``count`` generated inputs in batches of exactly ``rows``.

        Args:
            count: number of rows R, at least 1.
            make: (start, stop) → normalised (stop − start, 3, S, S); built only when needed,
                so memory does not grow with R.

        Returns:
            float32 (R, D) unit rows. Every batch has one shape (the last is padded with
            its own first row), so a row's value does not depend on how many there are.
        """
        out = []
        for start in range(0, count, self.rows):
            stop = min(start + self.rows, count)
            batch = make(start, stop)
            if stop - start < self.rows:
                padding = batch[:1].expand(self.rows - (stop - start), -1, -1, -1)
                batch = torch.cat([batch, padding])
            out.append(self.score(batch)[: stop - start])
        return torch.cat(out)
