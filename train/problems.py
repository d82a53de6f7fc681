"""What is wrong with the data of a user: named, counted, fatal or not. Refuses to know pixels."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from medclipsam.engine.errors import ConfigError

OnError = Literal["fail", "skip"]
SHOWN = 20  # problems of a kind that are named one by one


@dataclass
class Problems:
    """What is wrong with data: the first is fatal, or all are named and counted.

    Attributes:
        fatal: whether the first ends it.
        log: takes a line for each of the first of a kind.
        counts: how often, by kind.
    """

    fatal: bool
    log: Callable[[str], None]
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, where: str, what: str) -> None:
        """Take note of one.

        Raises:
            ConfigError: if the first is to be fatal.
        """
        if self.fatal:
            raise ConfigError(f"{where}: {what} ({kind}); mend it, or leave such rows out with "
                              "--on-error skip")  # fmt: skip
        self.note(kind, where, what)

    def note(self, kind: str, where: str, what: str) -> None:
        """Name and count what is left out and never fatal."""
        self.counts[kind] += 1
        if self.counts[kind] <= SHOWN:
            self.log(f"left out, {kind}: {where}: {what}")
        elif self.counts[kind] == SHOWN + 1:
            self.log(f"left out, {kind}: further ones are counted, not named")
