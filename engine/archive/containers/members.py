"""Members of containers: names that are safe to use, and one of each.

Refuses to know how containers store them. Nothing is ever extracted: a member's name
becomes part of an item's id, and ids become paths in the run folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from medclipsam.engine.archive.containers.seen import Seen
from medclipsam.engine.errors import InputError

DRIVE = re.compile(r"[A-Za-z]:")
UNSAFE = re.compile(r"[\0-\x1f\x7f%]|^[/\\]+|:|\\|(?:(?<=[/\\])|^)\.\.(?=[/\\]|$)")


@dataclass(frozen=True)
class Member:
    """One file in a container, which nobody has read yet.

    Attributes:
        name: as stored, whatever that may be.
        size: bytes that it claims to hold.
        start: gives its first bytes, as many as tell whether it is DICOM.
        fetch: gives all of it, or raises InputError.
        error: why it cannot be read, known from the container's directory.
        streamed: its bytes pass by once, before the next member is asked for.
    """

    name: str
    size: int
    start: Callable[[], bytes]
    fetch: Callable[[], bytes]
    error: InputError | None = None
    streamed: bool = False


def safe_name(name: str) -> str:
    """``name`` without empty and ``.`` parts, or empty if it could lead out of a folder."""
    parts = re.split(r"[/\\]", name)
    if not name or "\0" in name or ".." in parts or not parts[0] or DRIVE.match(name):
        return ""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def harmless_name(name: str) -> str:
    """A printable stand-in for an unsafe name, different for different names."""
    coded = UNSAFE.sub(lambda found: "".join(f"%{ord(c):02x}" for c in found[0]), name)
    return "/".join(part or "%2f" for part in coded.split("/"))


def is_hidden(name: str) -> bool:
    """Whether a safe name, or a folder in it, begins with a dot."""
    return name.startswith(".") or "/." in name


class Names(Seen):
    """Gives every member of a container an id of its own: ``a.png``, then ``a.png#2``."""

    def distinct(self, name: str) -> str:
        """``name`` the first time, then with the number of its occurrence."""
        while (count := self.count(name)) > 1:
            name = f"{name}#{count}"
        return name
