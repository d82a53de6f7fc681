"""Which images are measured: phantoms, or a sample of a user's archive."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from random import Random

from medclipsam.benchmarks.inputs.archive import write_archive
from medclipsam.engine.archive import Archive, Entry, open_archive
from medclipsam.engine.archive.sieve import Sieve

LOOK = 20_000  # entries of an archive among which a sample is taken


@dataclass(frozen=True)
class Source:
    """Where samples come from.

    Attributes:
        archive: all of it.
        synthetic: it is made of phantoms.
        entries: of the archive, at most ``LOOK``.
    """

    archive: Archive
    synthetic: bool
    entries: int

    @property
    def name(self) -> str:
        """For people."""
        if self.synthetic:
            return "synthetic: phantoms of ultrasound"
        more = "at least " if self.entries == LOOK else ""
        return f"{self.archive.name}, {more}{self.entries} items"

    def take(self, items: int) -> Archive:
        """So many items: the first phantoms, else some at random, which are always the same."""
        places = list(range(self.entries))
        if not self.synthetic:
            Random(0).shuffle(places)  # a larger sample holds the smaller ones
        chosen = set(places[:items])

        def walk(sieve: Sieve) -> Iterator[Entry]:
            listed = enumerate(islice(self.archive.walk(sieve), self.entries))
            return (entry for n, entry in listed if n in chosen)

        return replace(self.archive, walk=walk)


def open_source(archive: Archive) -> Source:
    """A user's archive.

    Raises:
        ConfigError: it has no images.
    """
    return Source(archive, False, sum(1 for _ in islice(archive, LOOK)))


def make_source(folder: Path, share: int, count: int) -> Source:
    """``count`` phantoms, of which ``share`` percent show what is asked."""
    made = write_archive(folder, share, count)
    return Source(open_archive(str(made.folder)), True, count)
