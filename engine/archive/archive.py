"""What every kind of archive has in common: a name, and entries in a fixed order."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from medclipsam.engine.archive.entry import Entry
from medclipsam.engine.archive.patterns import Patterns
from medclipsam.engine.archive.sieve import Sieve
from medclipsam.engine.errors import ConfigError


@dataclass
class Archive:
    """Items to be listed, lazily and anew by each iteration.

    Attributes:
        identity: what makes it this archive and no other, without passwords.
        name: short, for display.
        walk: lists its entries; files of other kinds go to the sieve.
        patterns: which of them are wanted.
        selection: the arguments ``include``, ``exclude`` and ``series`` of ``open_archive``.
        countable: whether listing it costs little compared to reading it.
        ignored: suffix → number of files that are not images, filled while iterating.
    """

    identity: str
    name: str
    walk: Callable[[Sieve], Iterator[Entry]]
    patterns: Patterns = field(default_factory=Patterns)
    selection: dict[str, Any] = field(default_factory=dict)
    countable: bool = True
    ignored: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[Entry]:
        """All entries.

        Raises:
            ConfigError: there is none at all, or the archive's root cannot be opened.
        """
        sieve = Sieve(self.patterns)
        self.ignored = sieve.ignored
        found = False
        for entry in self.walk(sieve):
            found = True
            yield entry
        if not found:
            others = ", ".join(f"{s or 'no suffix'} × {n}" for s, n in sorted(self.ignored.items()))
            raise ConfigError(
                f"found no images under {self.name}; expected files such as .png, .jpg, .tif, "
                f".dcm or .nii.gz, got {others or 'no files'}"
            )

    def count(self) -> int | None:
        """The number of entries, where listing them reads no images; else None."""
        number = 0
        for entry in self.walk(Sieve(self.patterns)) if self.countable else ():
            if entry.streamed:
                return None
            number += 1
        return number if self.countable else None
