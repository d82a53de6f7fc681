"""How often a model finds the caption of an image, and the image of a caption.

What is retrieved are distinct things. Captions of the same words are one caption, and
images of the same pixels one image, under whatever names they come; each counts once as a
query and once as a candidate. Whatever the table pairs is a partner: an image with three
captions is found by each of them, and finds any of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from medclipsam.engine.errors import ConfigError, InputError
from medclipsam.engine.evaluation.interval import Interval
from medclipsam.train.problems import OnError
from medclipsam.train.ranking import Ranking, rank_partners
from medclipsam.train.retrieval.embedding import Embedder, Load, Rows

if TYPE_CHECKING:
    from medclipsam.train.pairs.pairs import Pair

TOPS = (1, 2, 5, 10)
DIRECTIONS = ("image_to_text", "text_to_image")


@dataclass(frozen=True)
class Retrieval:
    """One model's ranks, both ways."""

    name: str
    image_to_text: Ranking
    text_to_image: Ranking

    def share(self, direction: str, top: int, pool: int | None = None) -> Interval:
        """Share of queries with a partner among the first ``top``; see ``Ranking.hits``."""
        return Interval.of(getattr(self, direction).hits(top, pool))


@dataclass(frozen=True)
class Retrievals:
    """Models over one set of pairs.

    Attributes:
        images, texts, pairs: how many distinct ones there are.
        problems: what was skipped, by kind.
    """

    models: tuple[Retrieval, ...]
    images: int
    texts: int
    pairs: int
    problems: Counter[str]


@dataclass(frozen=True)
class Gain:
    """A model beside the first one, over the same queries.

    Attributes:
        difference: of the share of hits, this model's minus the first's; paired.
        better, worse: queries in which this model does better, or worse, than the first.
        p: exact two-sided sign test on these two numbers, which for hits is McNemar's.
    """

    name: str
    direction: str
    top: int
    difference: Interval
    better: int
    worse: int
    p: float


def retrieve(
    pairs: Sequence[Pair],
    models: Iterable[tuple[str, Embedder]],
    load: Load,
    on_error: OnError = "fail",
    log: Callable[[str], None] = print,
) -> Retrievals:
    """Embed all pairs with each model, and rank.

    All models are judged on the same pairs: what one of them cannot read is skipped for all.

    Args:
        models: (name, embedder); taken one after the other, so that only one need be open.
        load: the pixels of a pair's image, uint8 (H, W, 3).
        on_error: what to do with an image that cannot be read, or a caption of which a model
            knows no word.
        log: is told what is skipped.

    Raises:
        InputError, ConfigError: the first such image or caption, if ``on_error`` is ``fail``.
        ConfigError: fewer than two pairs are left.
    """
    named: dict[str, Pair] = {}
    for pair in pairs:
        named.setdefault(str(pair.image), pair)
    sources = list(named.values())
    captions = list(dict.fromkeys(pair.caption for pair in pairs))
    complaint = _Complaint(pairs, on_error, log)
    embedded: dict[str, tuple[Rows, Rows]] = {}
    for name, embedder in models:
        texts = embedder.embed_texts(captions, partial(complaint.about_caption, name))
        images = embedder.embed_images(sources, load, complaint.about_image)
        embedded[name] = images, texts
    selection = _select(pairs, sources, captions, list(embedded.values()))
    found = tuple(_rank(name, *rows, selection) for name, rows in embedded.items())
    image_count, text_count = len(selection.images), len(selection.texts)
    return Retrievals(found, image_count, text_count, len(selection.partners), complaint.problems)


def compare(retrievals: Retrievals, pool: int | None = None) -> list[Gain]:
    """Every model but the first, beside the first."""
    first, *others = retrievals.models
    return [
        _gain(first, other, direction, top, pool)
        for other in others
        for direction in DIRECTIONS
        for top in TOPS
    ]


def _gain(first: Retrieval, other: Retrieval, direction: str, top: int, pool: int | None) -> Gain:
    from scipy.stats import binomtest

    theirs, ours = (getattr(model, direction).hits(top, pool) for model in (first, other))
    gaps = (ours - theirs).round(12)  # rounding of hypergeometric sums is no difference
    better, worse = int((gaps > 0).sum()), int((gaps < 0).sum())
    p = float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
    return Gain(other.name, direction, top, Interval.of(gaps), better, worse, p)


@dataclass(frozen=True)
class _Selection:
    """Places of the distinct usable images and texts, and (image, text) partners among them."""

    images: np.ndarray
    texts: np.ndarray
    partners: np.ndarray


def _select(
    pairs: Sequence[Pair],
    sources: Sequence[Pair],
    captions: Sequence[str],
    embedded: Sequence[tuple[Rows, Rows]],
) -> _Selection:
    if not embedded:
        raise ConfigError("expected at least one model, got none")
    digests = embedded[0][0].digests
    for images, _ in embedded[1:]:  # a file that changed meanwhile would pair other things
        if images.digests != digests:
            raise ConfigError("an image changed while models were run one after the other; repeat")
    source_of = {str(pair.image): place for place, pair in enumerate(sources)}
    text_of = {caption: place for place, caption in enumerate(captions)}
    unread = np.any([np.isnan(texts.values[:, 0]) for _, texts in embedded], axis=0)
    first_of: dict[str, int] = {}  # digest → first image of these pixels
    kept: dict[tuple[int, int], None] = {}
    for pair in pairs:
        image, text = source_of[str(pair.image)], text_of[pair.caption]
        if digests[image] and not unread[text]:
            kept[first_of.setdefault(digests[image], image), text] = None
    if len(kept) < 2:
        raise ConfigError(
            f"retrieval needs at least two different pairs, got {len(kept)} of {len(pairs)}"
        )
    indices = np.array(list(kept), np.int64)
    chosen, images_at = np.unique(indices[:, 0], return_inverse=True)
    words, texts_at = np.unique(indices[:, 1], return_inverse=True)
    return _Selection(chosen, words, np.stack([images_at, texts_at], 1))


def _rank(name: str, images: Rows, texts: Rows, selection: _Selection) -> Retrieval:
    pictures, words = images.values[selection.images], texts.values[selection.texts]
    return Retrieval(
        name,
        rank_partners(pictures, words, selection.partners),
        rank_partners(words, pictures, selection.partners[:, ::-1]),
    )


class _Complaint:
    """Raises, or says once, what is wrong with an image or a caption."""

    def __init__(self, pairs: Sequence[Pair], on_error: OnError, log: Callable[[str], None]):
        self.pairs, self.on_error, self.log = pairs, on_error, log
        self.problems: Counter[str] = Counter()
        self._told: set[tuple[str, str]] = set()

    def about_image(self, pair: Pair, error: InputError) -> None:
        if self.on_error == "fail":
            raise InputError(
                "read_image",
                error.reason,
                f"{pair.row}: {error}; repair the file, or skip such rows with --on-error skip",
            ) from error
        self._tell("unreadable image", str(pair.image), f"{pair.row}: {error}")

    def about_caption(self, model: str, caption: str, error: ConfigError) -> None:
        row = next(pair.row for pair in self.pairs if pair.caption == caption)
        message = f"{row}: bundle {model!r} cannot read the caption: {error}"
        if self.on_error == "fail":
            raise ConfigError(f"{message}; or skip such rows with --on-error skip") from error
        self._tell("unknown caption", caption, message)

    def _tell(self, kind: str, what: str, message: str) -> None:
        if (kind, what) not in self._told:
            self._told.add((kind, what))
            self.problems[kind] += 1
            self.log(f"skipped, {message}")
