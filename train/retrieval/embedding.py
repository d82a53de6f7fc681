"""Images and captions as one CLIP sees them: unit rows, made as the engine makes them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from medclipsam.engine.config import FitMode
from medclipsam.engine.encoder import ClipEncoder
from medclipsam.engine.errors import ConfigError, InputError
from medclipsam.engine.fit import fit_image, make_fit
from medclipsam.train.threads import work_ahead

if TYPE_CHECKING:
    from medclipsam.train.pairs.pairs import Pair

Load = Callable[["Pair"], np.ndarray]  # → uint8 (H, W, 3), or InputError


@dataclass(frozen=True)
class Rows:
    """What was embedded, in the order in which it was given.

    Attributes:
        values: float32 (N, D) unit rows; NaN where there is none.
        digests: sha256 of each image's pixels, empty where it cannot be read; none of texts.
    """

    values: np.ndarray
    digests: tuple[str, ...] = ()


@dataclass(frozen=True)
class Embedder:
    """One CLIP, and how images enter it.

    Attributes:
        encoder: its ``rows`` are how many images share a batch; parts of one are padded.
        fit: see ``medclipsam.engine.fit``.
        threads: that read images while the device works.
    """

    encoder: ClipEncoder
    fit: FitMode = "squash"
    threads: int = 1

    def embed_images(
        self, pairs: Sequence[Pair], load: Load, refuse: Callable[[Pair, InputError], None]
    ) -> Rows:
        """The image of each pair. Memory holds a batch and what is read ahead of it.

        Args:
            load: reads it.
            refuse: told of one that cannot be read; goes on unless this raises.
        """
        digests: list[str] = []
        places: list[int] = []
        squares: list[np.ndarray] = []
        embedded: list[np.ndarray] = []
        for place, (digest, square) in enumerate(self._squares(pairs, load)):
            digests.append(digest)
            if isinstance(square, InputError):
                refuse(pairs[place], square)
                continue
            places.append(place)
            squares.append(square)
            if len(squares) == self.encoder.rows:
                embedded.append(self._embed(squares))
                squares = []
        if squares:
            embedded.append(self._embed(squares))
        return Rows(_spread(embedded, places, len(digests)), tuple(digests))

    def embed_texts(self, texts: Sequence[str], refuse: Callable[[str, ConfigError], None]) -> Rows:
        """Each text, one by one, so that batching changes nothing.

        Args:
            refuse: told of one of which no word is known; goes on unless this raises.
        """
        places, embedded = [], []
        for place, text in enumerate(texts):
            try:
                embedded.append(self.encoder.encode_text([text]).cpu().numpy())
            except ConfigError as exc:
                refuse(text, exc)
            else:
                places.append(place)
        return Rows(_spread(embedded, places, len(texts)))

    def _squares(
        self, pairs: Sequence[Pair], load: Load
    ) -> Iterator[tuple[str, np.ndarray | InputError]]:
        """(digest, uint8 (S, S, 3) or what is wrong) of each image, in order, read ahead."""
        ahead = self.encoder.rows + 2 * self.threads
        return work_ahead(lambda pair: self._square(pair, load), pairs, self.threads, ahead)

    def _square(self, pair: Pair, load: Load) -> tuple[str, np.ndarray | InputError]:
        try:
            rgb = load(pair)
        except InputError as exc:
            return "", exc
        digest = hashlib.sha256(repr(rgb.shape).encode())
        digest.update(np.ascontiguousarray(rgb))
        fit = make_fit(rgb.shape[0], rgb.shape[1], self.encoder.image_size, self.fit)
        return digest.hexdigest(), fit_image(rgb, fit)

    def _embed(self, squares: Sequence[np.ndarray]) -> np.ndarray:
        pixels = torch.from_numpy(np.stack(squares)).to(self.encoder.device)
        rows = self.encoder.normalise(pixels.permute(0, 3, 1, 2).float() / 255)
        if short := self.encoder.rows - len(rows):
            rows = torch.cat([rows, rows[:1].expand(short, -1, -1, -1)])
        return self.encoder.score(rows)[: len(squares)].float().cpu().numpy()


def _spread(embedded: Sequence[np.ndarray], places: Sequence[int], count: int) -> np.ndarray:
    """Rows at their places among ``count``, NaN between them."""
    if not embedded:
        return np.full((count, 1), np.nan, np.float32)
    found = np.concatenate(embedded)
    rows = np.full((count, found.shape[1]), np.nan, np.float32)
    rows[list(places)] = found
    return rows
