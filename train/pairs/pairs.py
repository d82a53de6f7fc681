"""Images and what is written about them: the training data of CLIP, and what it is judged on.

Refuses to know pixels: an image is an entry that nobody has read yet.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medclipsam.engine.archive import Decoders, Entry
from medclipsam.engine.errors import ConfigError
from medclipsam.train.pairs.captions import LEAST, clean_caption
from medclipsam.train.pairs.sources import Raw, open_source
from medclipsam.train.problems import OnError, Problems


@dataclass(frozen=True)
class Pair:
    """One image and its caption.

    Attributes:
        entry: where the image is.
        caption: cleaned.
        row: where the pair stands, for messages.
        mask: file of what augmentation must not hide, if the source has such a column.
    """

    entry: Entry
    caption: str
    row: str
    mask: Path | None = None

    @property
    def image(self) -> str:
        """The image's id within its source."""
        return self.entry.ref.id


@dataclass(frozen=True)
class PairList:
    """What a source holds.

    Attributes:
        pairs: in the order of the source.
        problems: kind → how many rows were left out.
    """

    pairs: tuple[Pair, ...]
    problems: Counter[str]

    def __str__(self) -> str:
        return f"{len(self.pairs)} pairs of image and caption"

    @property
    def digest(self) -> str:
        """sha256 of names and captions: the identity of the list, not of its pixels."""
        found = hashlib.sha256()
        for pair in self.pairs:
            found.update(repr((pair.image, pair.caption, str(pair.mask))).encode())
        return found.hexdigest()


def read_pairs(
    source: str,
    image_column: str = "image",
    caption_column: str = "caption",
    images: Path | None = None,
    on_error: OnError = "fail",
    log: Callable[[str], None] = print,
    least: int = LEAST,
    mask_column: str | None = None,
) -> PairList:
    """List image–caption pairs and clean their captions; no image is opened.

    Args:
        source: a table (.csv, .tsv, .parquet); a file ``captions.txt`` with a name, a tab and a
            caption in each line, as ROCO has it; a folder of images with a .txt of the same
            name beside each; WebDataset shards (``shards-{000..009}.tar``).
        images: folder that a table's images are relative to; by default the table's. Names
            may lack their suffix.
        on_error: whether a row that cannot be used ends it, or is left out, named and counted.
        least: characters; shorter captions are left out, named and counted, in any case.

    Raises:
        ConfigError: no such source or column, no usable pair, or a row that cannot be used.
    """
    problems = Problems(on_error == "fail", log)
    raws = open_source(source, image_column, caption_column, images, mask_column, problems.add)
    pairs = tuple(_usable(raws, problems, least))
    if not pairs:
        found = ", ".join(f"{kind}: {n}" for kind, n in problems.counts.items()) or "it is empty"
        raise ConfigError(f"{source} holds no usable pair of image and caption ({found})")
    return PairList(pairs, problems.counts)


def _usable(raws: Iterator[Raw], problems: Problems, least: int) -> Iterator[Pair]:
    for raw in raws:
        caption = clean_caption(raw.caption or "")
        if raw.entry.error is not None:
            problems.add("no image", raw.row, str(raw.entry.error))
        elif raw.mask and raw.mask.error:
            problems.add("no mask", raw.row, str(raw.mask.error))
        elif not caption:
            problems.add("no caption", raw.row, "the caption is empty")
        elif len(caption) < least:
            problems.note("short caption", raw.row, f"{caption!r} has fewer than {least} letters")
        else:
            yield Pair(raw.entry, caption, raw.row, raw.mask.files[0] if raw.mask else None)


def load_image(decoders: Decoders, pair: Pair) -> np.ndarray:
    """The image of a pair, of several frames the first: uint8 (H, W, 3).

    Raises:
        InputError: it cannot be read.
    """
    return decoders.decode(pair.entry).frames[0]
