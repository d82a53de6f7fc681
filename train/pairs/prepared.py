"""Images decoded once, squared and kept in one file, so that training neither waits nor stumbles.

FOLDER/images.npy    uint8 (N, S, S, 3), as the model sees them, before normalisation
FOLDER/masks.npy     bool (N, S, S), where the pairs name masks
FOLDER/data.json     what it was made of; written last
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from medclipsam.engine.archive import Decoders
from medclipsam.engine.config import FitMode
from medclipsam.engine.durable import make_folder, write_durable
from medclipsam.engine.errors import ConfigError, InputError, OutputError
from medclipsam.engine.fit import fit_image, make_fit
from medclipsam.engine.outputs import read_mask
from medclipsam.train.pairs.pairs import Pair, PairList, load_image
from medclipsam.train.problems import Problems
from medclipsam.train.threads import work_ahead

IMAGES, MASKS, FACTS = "images.npy", "masks.npy", "data.json"
Squares = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class Prepared:
    """Pairs ready for training.

    Attributes:
        images: uint8 (N, S, S, 3), mapped from disk.
        captions: N of them.
        masks: bool (N, S, S), mapped from disk, or None.
    """

    images: np.ndarray
    captions: tuple[str, ...]
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.captions)

    def take(self, chosen: np.ndarray) -> Prepared:
        """Some of them, by index; copies."""
        masks = None if self.masks is None else self.masks[chosen]
        return Prepared(self.images[chosen], tuple(self.captions[n] for n in chosen), masks)


def prepare(
    pairs: PairList, folder: Path, side: int, fit: FitMode, problems: Problems, threads: int
) -> Prepared:
    """Decode and square all images of ``pairs`` into ``folder``, or take what is there of them.

    Args:
        side: S.
        fit: see ``medclipsam.engine.fit``.
        problems: told of images that cannot be read.

    Raises:
        ConfigError: an image that cannot be read, if that is fatal; or none can.
        OutputError: the folder cannot be written.
    """
    identity = {"pairs": pairs.digest, "side": side, "fit": fit}
    kept = _known(folder, identity)
    if kept is None:
        kept = _decode_all(pairs.pairs, folder, side, fit, problems, threads)
        write_durable(folder / FACTS, json.dumps({**identity, "kept": kept}).encode())
    if not kept:
        raise ConfigError("none of the images can be read")
    masks = folder / MASKS
    return Prepared(
        np.load(folder / IMAGES, mmap_mode="r")[: len(kept)],
        tuple(pairs.pairs[n].caption for n in kept),
        np.load(masks, mmap_mode="r")[: len(kept)] if masks.exists() else None,
    )


def _known(folder: Path, identity: dict[str, Any]) -> list[int] | None:
    try:
        facts = json.loads((folder / FACTS).read_text("utf-8"))
        kept = facts.pop("kept")
    except (OSError, ValueError, KeyError):
        return None
    return kept if facts == identity else None


def _decode_all(
    pairs: Sequence[Pair],
    folder: Path,
    side: int,
    fit: FitMode,
    problems: Problems,
    threads: int,
) -> list[int]:
    """Indices of the pairs whose images lie in the file, in its order."""
    make_folder(folder)
    has_masks = any(pair.mask for pair in pairs)
    shape = (len(pairs), side, side)
    try:
        for name in (FACTS, MASKS):
            (folder / name).unlink(missing_ok=True)
        images = _create(folder / IMAGES, np.uint8, (*shape, 3))
        masks = _create(folder / MASKS, np.bool_, shape) if has_masks else None
    except OSError as exc:
        raise OutputError(f"cannot write prepared images to {folder}: {exc.strerror}") from exc
    kept: list[int] = []
    with Decoders(threads) as decoders:
        for n, found in enumerate(_squares(decoders, pairs, side, fit, threads)):
            if isinstance(found, InputError):
                problems.add("unreadable image", pairs[n].row, str(found))
                continue
            images[len(kept)] = found[0]
            if masks is not None and found[1] is not None:
                masks[len(kept)] = found[1]
            kept.append(n)
    images.flush()
    if masks is not None:
        masks.flush()
    return kept


def _create(path: Path, kind: Any, shape: tuple[int, ...]) -> np.memmap:
    return np.lib.format.open_memmap(path, "w+", kind, shape)


def _squares(
    decoders: Decoders, pairs: Sequence[Pair], side: int, fit: FitMode, threads: int
) -> Iterator[Squares | InputError]:
    """In order, read ahead by a few."""

    def one(pair: Pair) -> Squares | InputError:
        try:
            rgb = load_image(decoders, pair)
            place = make_fit(rgb.shape[0], rgb.shape[1], side, fit)
            if pair.mask is None:
                return fit_image(rgb, place), None
            mask = read_mask(pair.mask)[0][0]
            if mask.shape != rgb.shape[:2]:
                what = f"its mask is of {mask.shape}, it of {rgb.shape[:2]}"
                raise InputError("read_image", "unreadable", what)
            inner = cv2.resize(
                mask.astype(np.float32),
                (place.inner_width, place.inner_height),
                interpolation=cv2.INTER_AREA,
            )
        except InputError as exc:
            return exc
        square = np.zeros((side, side), bool)
        rows = slice(place.top, place.top + place.inner_height)
        square[rows, place.left : place.left + place.inner_width] = inner > 0.5
        return fit_image(rgb, place), square

    return work_ahead(one, pairs, threads, 4 * threads)
