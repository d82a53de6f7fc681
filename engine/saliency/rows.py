"""Score rows: masked images of many images, embedded in batches of one shape.

A method says with a ``Probe`` which rows of an image it wants to see, and from what it has
seen, which ones next: it asks in rounds. ``RowQueue`` cuts the rows of all images and rounds
into batches of at most ``ClipEncoder.rows``; pixels of a row exist only while its batch does.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from medclipsam.engine.encoder import ClipEncoder


@dataclass(frozen=True)
class Probe:
    """What one image asks of the model, and what becomes of the answer.

    Attributes:
        rows: number of rows R, possibly 0.
        make: (start, stop) → normalised rows (stop − start, 3, S, S).
        finish: float32 (R, D) unit embeddings on the CPU → the ``Probe`` of the next round, or
            what is made of them.
    """

    rows: int
    make: Callable[[int, int], Tensor]
    finish: Callable[[Tensor], Any]


@dataclass(eq=False)
class _Open:
    """A probe on its way: its number in the order of adding, and the rows it has received."""

    number: int
    owner: Any
    probe: Probe
    parts: list[Tensor] = field(default_factory=list)
    received: int = 0


_Span = tuple[_Open, int, int]  # a probe, its first row, the row after its last


class RowQueue:
    """Rows of many probes on their way through batches of one shape.

    First come, first served, but for later rounds: their rows go before those of probes that
    have not begun, so that an image that was begun ends soon. What is held is spans of rows
    and the embeddings of probes that are not complete; pixels exist only while their batch does.
    """

    def __init__(self, model: ClipEncoder):
        self._model = model
        self._open: dict[int, _Open] = {}
        self._added = 0
        self._first: deque[_Span] = deque()
        self._later: deque[_Span] = deque()
        self._done: deque[tuple[int, Any]] = deque()
        self.waiting = 0

    def __len__(self) -> int:
        """Probes that ``finished`` has not given out."""
        return len(self._open)

    @property
    def most(self) -> int:
        """Rows of a full batch."""
        return self._model.rows

    @property
    def full(self) -> bool:
        """Whether a whole batch waits."""
        return self.waiting >= self.most

    def add(self, probe: Probe, owner: Any = None) -> None:
        """Let the rows of ``probe`` wait for a batch; ``finished`` names its ``owner``."""
        entry = _Open(self._added, owner, probe)
        self._added += 1
        self._open[entry.number] = entry
        try:
            self._ask(entry, self._first)
        except Exception:
            del self._open[entry.number]  # it is the caller's again
            raise

    def run(self) -> None:
        """Embed one batch, of fewer rows if fewer wait."""
        batch, left = [], self.most
        while left and (spans := self._later or self._first):
            entry, start, stop = spans.popleft()
            cut = min(stop, start + left)
            batch.append((entry, start, cut))
            if cut < stop:
                spans.appendleft((entry, cut, stop))
            left -= cut - start
        self.waiting -= self.most - left
        for entry in _embed(self._model, batch):
            if entry.received == entry.probe.rows:
                self._advance(entry)

    def _ask(self, entry: _Open, spans: deque[_Span]) -> None:
        if entry.probe.rows:
            spans.append((entry, 0, entry.probe.rows))
            self.waiting += entry.probe.rows
        else:
            self._advance(entry)

    def _advance(self, entry: _Open) -> None:
        """A round of a probe is complete: begin its next one, or be done with it."""
        rows = torch.cat(entry.parts) if entry.parts else torch.empty(0, 0)
        found = entry.probe.finish(rows)
        if isinstance(found, Probe):
            entry.probe, entry.parts, entry.received = found, [], 0
            self._ask(entry, self._later)
        else:
            self._done.append((entry.number, found))

    def finished(self) -> Iterator[tuple[Any, Any]]:
        """(owner, what its probe made of its rows) of complete probes, as they completed."""
        while self._done:
            number, found = self._done[0]
            yield self._open[number].owner, found
            self._done.popleft()  # not before: until it is taken, it is among those to restart
            del self._open[number]

    def clear(self) -> list[Any]:
        """Forget everything; returns the owners of the probes that were not given out."""
        owners = [entry.owner for entry in self._open.values()]
        for held in (self._open, self._first, self._later, self._done):
            held.clear()
        self.waiting = 0
        return owners


def run_probes(model: ClipEncoder, probes: Iterable[Probe]) -> Iterator[Any]:
    """What each probe makes of its rows, in order.

    ``probes`` is consumed lazily: what is held is one batch of pixels, and the embeddings
    of those images whose rows are in it or who wait for one before them.
    """
    queue = RowQueue(model)
    found: dict[int, Any] = {}
    given = 0

    def ready() -> Iterator[Any]:
        nonlocal given
        found.update(queue.finished())
        while given in found:
            yield found.pop(given)
            given += 1

    for number, probe in enumerate(probes):
        queue.add(probe, number)
        while queue.full:
            queue.run()
        yield from ready()
    while queue.waiting:
        queue.run()
        yield from ready()
    yield from ready()


def _embed(model: ClipEncoder, batch: list[_Span]) -> list[_Open]:
    """Embed one batch and hand each probe its part; returns the probes.

    Rows of whatever layout are copied into one contiguous batch: arithmetic chooses its
    kernels by the layout too, and a row's bytes must not depend on its neighbours. The
    embeddings of a whole batch come to the CPU at once: only then is the device waited for.
    """
    rows, at = torch.empty(0), 0
    count = sum(stop - start for _, start, stop in batch)
    for entry, start, stop in batch:
        made = entry.probe.make(start, stop)
        if not at:
            rows = made.new_empty((count, *made.shape[1:]))
        rows[at : at + len(made)] = made
        at += len(made)
    embeddings = model.score(rows).cpu()
    at = 0
    for entry, start, stop in batch:
        entry.parts.append(embeddings[at : at + stop - start])
        entry.received += stop - start
        at += stop - start
    return [entry for entry, _, _ in batch]


def then(probe: Probe, answer: Callable[[Any], Any]) -> Probe:
    """``probe``, whose last round finishes with ``answer`` of what it makes of its rows."""

    def finish(rows: Tensor) -> Any:
        found = probe.finish(rows)
        return then(found, answer) if isinstance(found, Probe) else answer(found)

    return replace(probe, finish=finish)


def stack_maps(model: ClipEncoder, probes: Iterable[Probe]) -> Tensor:
    """(B, Q, h, w) of B probes of as many maps each."""
    return torch.stack([maps() for maps in run_probes(model, probes)])


def no_rows(found: Any) -> Probe:
    """A probe that is answered already, without masked images."""

    def make(start: int, stop: int) -> Tensor:
        raise AssertionError("no row was asked for")

    return Probe(0, make, lambda rows: found)
