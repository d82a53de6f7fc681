"""One item as its archive lists it: where its bytes are, not yet what they show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from medclipsam.engine.errors import InputError
from medclipsam.engine.types import ItemRef


@dataclass(frozen=True)
class Entry:
    """A listed item that nobody has read yet.

    Exactly one of ``files``, ``fetch`` and ``error`` says what to do with it.

    Attributes:
        ref: its stable identity.
        size: bytes to be read, as far as the listing knows; else 0.
        files: local files, several where one item is a whole DICOM series.
        fetch: gives the bytes of a member of a container or a remote file, or raises
            InputError; called at most once, on any thread.
        error: why the item cannot be read, known from the listing alone.
        streamed: ``fetch`` must be called before the listing goes on, because its bytes
            pass by only once.
    """

    ref: ItemRef
    size: int = 0
    files: tuple[Path, ...] = ()
    fetch: Callable[[], bytes] | None = None
    error: InputError | None = None
    streamed: bool = False

    def held(self) -> Entry:
        """The same with its bytes, if these pass by only once; an error takes their place."""
        if not (self.streamed and self.fetch):
            return self
        try:
            data = self.fetch()
        except InputError as exc:
            return replace(self, fetch=None, error=exc)
        return replace(self, fetch=lambda: data)
