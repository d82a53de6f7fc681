"""Which of the files that an archive holds are items, and how many of the others there are.

Nothing that carries an image suffix is dropped, whatever it turns out to be: reading it
later says why it cannot be used, and so it is accounted for.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from medclipsam.engine.archive.kinds import known_suffix, may_be_dicom
from medclipsam.engine.archive.patterns import Patterns

LEFT_OUT = "left out by a pattern"


@dataclass(frozen=True)
class Sieve:
    """Lets items through and counts what stays behind.

    Attributes:
        patterns: the user's choice.
        ignored: suffix → number of files that are no items, filled by ``keep``.
    """

    patterns: Patterns
    ignored: Counter[str] = field(default_factory=Counter)

    def keep(self, path: str, has_magic: Callable[[], bool]) -> bool:
        """Whether the file at ``path`` is an item.

        Args:
            path: below the root, with ``/`` between its parts.
            has_magic: looks for DICOM's magic bytes; asked only where the name leaves
                a doubt, because that is a round trip a file on network storage.
        """
        name = path.rpartition("/")[2]
        named = bool(known_suffix(name))
        if not named and not may_be_dicom(name):
            return self.ignore(name)
        if not self.patterns.accept(path):
            self.ignored[LEFT_OUT] += named
            return False
        return named or has_magic() or self.ignore(name)

    def ignore(self, name: str) -> bool:
        """Count a file of another kind; always False."""
        self.ignored[os.path.splitext(name)[1].lower()] += 1
        return False

    def inside(self, container: str) -> Sieve:
        """The same for the members of a container."""
        return Sieve(self.patterns.inside(container), self.ignored)
