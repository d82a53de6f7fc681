"""Words for the person at the terminal. One that goes away costs the words, never the work."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import IO, TYPE_CHECKING

import click

from medclipsam.engine.errors import MedclipsamError

if TYPE_CHECKING:
    from medclipsam.engine.archive import Archive

EVERY = 50  # items between two lines where there is no terminal


def say(text: str, err: bool = False) -> None:
    """Print a line, if anybody is there to read it."""
    with unheard():
        click.echo(text, err=err)


@contextmanager
def unheard() -> Iterator[None]:
    """What prints inside may fail: standard output or error is then given up.

    A file that cannot be written any more (a closed pipe, a terminal that is gone) is led to
    the null device, so that neither later prints nor the interpreter's end stumble over it.
    """
    try:
        yield
    except (OSError, ValueError):
        for stream in (sys.stdout, sys.stderr):
            _silence_if_broken(stream)


def _silence_if_broken(stream: IO[str] | None) -> None:
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        except (OSError, ValueError):  # it has no file below it: there is nothing to lead away
            pass
        finally:
            os.close(nowhere)


class Progress:
    """A bar on a terminal, a line now and then elsewhere; a context manager.

    Args:
        archive: counted beside the work, where that is cheap.
    """

    def __init__(self, archive: Archive):
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        self._lines = not console.is_terminal
        self._last = 0
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=self._lines,
        )
        self._task = self._bar.add_task("segment", total=None)
        self._archive = archive

    def __enter__(self) -> Progress:
        with unheard():
            self._bar.start()
        if not self._lines and self._archive.countable:
            Thread(target=self._count, name="count", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with unheard():
            self._bar.stop()

    def _count(self) -> None:
        """The total, found beside the work: listing a large archive takes a while."""
        try:
            total = self._archive.count()
        except (MedclipsamError, OSError):  # the run lists it too, and says what is wrong
            return
        self._bar.update(self._task, total=total)

    def update(self, finished: int, counts: Counter[str]) -> None:
        """An ``Observer``."""
        text = "segment"
        if counts["quarantined"]:
            text += f" ({counts['quarantined']} quarantined)"
        self._bar.update(self._task, completed=finished, description=text)
        if self._lines and finished >= self._last + EVERY:
            self._last = finished
            say(f"{finished} items, {text}", err=True)
