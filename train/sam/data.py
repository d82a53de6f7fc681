"""Images and masks in the square frame that SAM sees, on disk, ready to be learned from.

Samples lie in unnamed files that the system pages in and out, so that their number is
bounded by the disk, not by memory.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import cv2
import numpy as np

from medclipsam.engine.archive import Decoders, Entry
from medclipsam.engine.config import BoxConfig
from medclipsam.engine.errors import ConfigError, InputError
from medclipsam.engine.outputs import read_mask
from medclipsam.engine.segment import inner_size, resize_image
from medclipsam.engine.weights.models import SamConfig
from medclipsam.train.patients import PatientRule, join_groups
from medclipsam.train.problems import Problems
from medclipsam.train.sam.cases import Case
from medclipsam.train.spool import Spool
from medclipsam.train.threads import work_ahead

AHEAD = 1  # cases read ahead, for each thread; a volume of one may take a gigabyte


@dataclass(frozen=True)
class SamSamples:
    """N images and their M masks in SAM's square input of side S.

    Attributes:
        images: uint8 (N, S, S, 3), or (N, S, S) where all are grey, resized as
            ``Segmenter.prepare`` does; not yet normalised.
        inner: int64 (N, 2), rows and columns that the image fills, from the upper left.
        masks: bool (M, S, S), none of them empty.
        source: int64 (M,), the image that each mask belongs to.
        groups: N names; images of one group are never both learned from and judged on.
    """

    images: np.ndarray
    inner: np.ndarray
    masks: np.ndarray
    source: np.ndarray
    groups: Sequence[str]

    def __post_init__(self) -> None:
        if not len(self.masks):
            raise ConfigError("there is no mask to learn from; SAM needs masks that are not empty")

    @cached_property
    def digest(self) -> str:
        """sha256 of everything that is learned from."""
        found = hashlib.sha256(repr((self.images.shape, list(self.groups))).encode())
        for rows in (self.images, self.inner, self.masks, self.source):
            for row in rows:
                found.update(np.ascontiguousarray(row))
        return found.hexdigest()


def gather_samples(
    cases: Sequence[Case],
    config: SamConfig,
    components: bool,
    problems: Problems,
    folder: Path,
    threads: int = 1,
    patients: PatientRule | None = None,
) -> SamSamples:
    """Read all cases into the frame of a SAM; every frame of a volume is an image.

    Args:
        components: each 8-connected component of a mask is a mask of its own, but for those
            smaller than ``BoxConfig.min_area``, which the engine takes for noise, too.
        problems: told of files that cannot be read or do not fit each other. Empty masks are
            named and counted, but never fatal.
        folder: on whose file system the samples lie.
        threads: decode processes, and threads that prepare.
        patients: whose images are kept on one side of a split.

    Raises:
        ConfigError: a problem, if that is fatal; or no mask is left.
        OutputError: the disk is full.
    """
    side, rule = config.image_size, patients or PatientRule()
    images, masks = Spool((side, side, 3), folder), Spool((side, side), folder)
    inner: list[tuple[int, int]] = []
    source: list[int] = []
    owners: list[tuple[str, str]] = []
    with Decoders(threads) as decoders:
        work = partial(_read_case, decoders, config, components, rule)
        reads = work_ahead(work, cases, threads, AHEAD * threads)
        for case, read in zip(cases, reads, strict=True):
            for kind, what in read.problems:
                problems.add(kind, case.item.id, what)
            for kind, what in read.notes:
                problems.note(kind, case.item.id, what)
            for frame in read.frames:
                images.add(frame.image)
                for mask in frame.masks:
                    masks.add(mask)
                source += [len(inner)] * len(frame.masks)
                inner.append(frame.inner)
                owners.append((read.patient, read.digest))
    return SamSamples(
        images.close(),
        np.array(inner, np.int64).reshape(-1, 2),
        masks.close().view(np.bool_),
        np.array(source, np.int64),
        join_groups(owners),
    )


@dataclass(frozen=True)
class _Frame:
    image: np.ndarray
    inner: tuple[int, int]
    masks: list[np.ndarray]


@dataclass(frozen=True)
class _Read:
    """What reading a case gave; ``problems`` and ``notes`` are (kind, what)."""

    frames: list[_Frame]
    problems: list[tuple[str, str]]
    notes: list[tuple[str, str]]
    patient: str = ""
    digest: str = ""


def _read_case(
    decoders: Decoders, config: SamConfig, components: bool, rule: PatientRule, case: Case
) -> _Read:
    entry = Entry(case.item, files=(case.image,))
    try:
        decoded = decoders.decode(entry)
    except InputError as exc:
        return _Read([], [("unreadable image", str(exc))], [])
    problems, notes = [], []
    found: list[list[np.ndarray]] = [[] for _ in decoded.frames]
    for label, path in case.masks.items():
        try:
            planes = _read_planes(path, decoded.frames.shape[:3])
        except InputError as exc:
            problems.append(("unreadable mask", f"{path}: {exc}"))
            continue
        counts = [_add_masks(found[n], plane, config, components) for n, plane in enumerate(planes)]
        if not any(counts):
            notes.append(("empty mask", f"{path} of {label or 'its label'} has nothing to learn"))
    patient, _ = rule.find(case.item.id, entry, None)
    frames = [
        _Frame(prepare_image(rgb, config), inner_size(rgb.shape[:2], config), masks)
        for rgb, masks in zip(decoded.frames, found, strict=True)
        if masks
    ]
    return _Read(frames, problems, notes, patient, decoded.digest)


def _read_planes(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """bool (F, H, W) of a mask that must have the shape of its image."""
    mask, _ = read_mask(path)
    mask = mask if mask.ndim == 3 else mask[None]
    if mask.shape != shape:
        raise InputError(
            "read_mask",
            "unreadable",
            f"it has the shape {mask.shape} (frames, rows, columns), its image {shape}; masks "
            "must lie on the image's own grid",
        )
    return mask


def _add_masks(
    found: list[np.ndarray], mask: np.ndarray, config: SamConfig, components: bool
) -> int:
    """Add the mask, or its components, in SAM's frame to ``found``; returns how many."""
    if not mask.any():
        return 0
    height, width = inner_size(mask.shape, config)
    square = fit_mask(mask, (height, width), config.image_size)
    smallest = max(1, round(BoxConfig().min_area * height * width)) if components else 1
    parts = list(_split(square, smallest)) if components else [square] * bool(square.any())
    found += parts
    return len(parts)


def _split(mask: np.ndarray, smallest: int) -> Iterator[np.ndarray]:
    """The 8-connected components of at least ``smallest`` pixels, each a bool (S, S)."""
    count, numbers, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    for number in range(1, count):
        if stats[number, cv2.CC_STAT_AREA] >= smallest:
            yield numbers == number


def prepare_image(rgb: np.ndarray, config: SamConfig) -> np.ndarray:
    """uint8 (H, W, 3) → uint8 (S, S, 3), 0 below and right of the image."""
    square = np.zeros((config.image_size, config.image_size, 3), np.uint8)
    resized = resize_image(rgb, config)
    square[: resized.shape[0], : resized.shape[1]] = resized
    return square


def fit_mask(mask: np.ndarray, inner: tuple[int, int], side: int) -> np.ndarray:
    """bool (H, W) → bool (S, S): nearest pixel, False below and right of the image."""
    height, width = inner
    square = np.zeros((side, side), bool)
    square[:height, :width] = cv2.resize(
        mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT
    )
    return square
