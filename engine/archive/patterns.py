"""Globs that choose items by their path below the archive's root.

``*`` and ``?`` stay within one part of a path, ``[a-z]`` is one character of a set, ``**``
stands for any number of parts. A glob without ``/`` looks at the last part only, so that
``*.png`` finds every PNG; one that ends in ``/`` means all that is below. Case matters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from medclipsam.engine.errors import ConfigError


@dataclass(frozen=True)
class Patterns:
    """What to take and what to leave out; nothing in ``include`` takes everything."""

    include: tuple[re.Pattern[str], ...] = ()
    exclude: tuple[re.Pattern[str], ...] = ()

    @classmethod
    def of(cls, include: Iterable[str], exclude: Iterable[str]) -> Patterns:
        """Compile globs.

        Raises:
            ConfigError: a glob is empty.
        """
        return cls(tuple(map(_compile, include)), tuple(map(_compile, exclude)))

    def accept(self, path: str) -> bool:
        """Whether the item at ``path`` is wanted."""
        return not self.leave_out(path) and (not self.include or _any(self.include, path))

    def leave_out(self, path: str) -> bool:
        """Whether an exclude glob matches; for a whole folder, ``path`` ends in ``/``."""
        return _any(self.exclude, path)

    def inside(self, container: str) -> Patterns:
        """The same for its members: all of them, where an include glob names it."""
        return Patterns((), self.exclude) if _any(self.include, container) else self


def _any(patterns: Iterable[re.Pattern[str]], path: str) -> bool:
    return any(pattern.fullmatch(path) for pattern in patterns)


def _compile(glob: str) -> re.Pattern[str]:
    text = glob.removeprefix("./").lstrip("/")
    if not text:
        raise ConfigError(f"the pattern {glob!r} names nothing; write one such as '*.png'")
    if text.endswith("/"):
        text += "**"
    parts = text.split("/")
    if len(parts) == 1:
        parts = ["**", *parts]
    return re.compile("".join(map(_part, parts[:-1])) + _last(parts[-1]), re.DOTALL)


def _part(part: str) -> str:
    return "(?:[^/]+/)*" if part == "**" else _characters(part) + "/"


def _last(part: str) -> str:
    return ".*" if part == "**" else _characters(part)


def _characters(part: str) -> str:
    """The regular expression of one part; ``*`` and ``?`` never match a ``/``."""
    found = re.findall(r"\[[!^]?\]?[^]]*\]|.", part, re.DOTALL)
    return "".join(map(_character, found))


def _character(piece: str) -> str:
    if piece in ("*", "?"):
        return "[^/]*" if piece == "*" else "[^/]"
    if len(piece) == 1:
        return re.escape(piece)
    inner, negated = piece[1:-1], piece[1] in "!^"
    members = re.sub(r"([\\\[\]^&~|])", r"\\\1", inner[negated:])
    return f"(?!/)[{'^' if negated else ''}{members}]"
