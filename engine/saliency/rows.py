"""Score rows: masked images of many images, embedded in batches of one shape.

A method says with a ``Probe`` which rows of an image it wants to see, and from what it has
seen, which ones next: it asks in rounds. ``RowQueue`` cuts the rows of all images and rounds
into batches of at most ``ClipEncoder.rows``; pixels of a row exist only while its batch does.

A device is never waited for in between: what was launched is ``Launched``, and whoever drives the
queue lands it when its tensors have come to the CPU.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from medclipsam.engine.backends.handover import Launched, fetch
from medclipsam.engine.encoder import ClipEncoder


@dataclass(frozen=True)
class Probe:
    """What one image asks of the model, and what becomes of the answer.

    Attributes:
        rows: number of rows R, possibly 0.
        make: (start, stop) → normalised rows (stop − start, 3, S, S).
        finish: float32 (R, D) unit embeddings on the CPU → the next round, a ``Probe`` or
            ``Fetch``, or what is made of them.
    """

    rows: int
    make: Callable[[int, int], Tensor]
    finish: Callable[[Tensor], Any]


@dataclass(frozen=True)
class Fetch:
    """What must be known of the device before a method can say what it asks.

    Attributes:
        tensors: on the device.
        finish: the same on the CPU → as of ``Probe``.
    """

    tensors: tuple[Tensor, ...]
    finish: Callable[..., Any]


Round = Probe | Fetch


@dataclass(eq=False)
class _Open:
    """A probe on its way: its number in the order of adding, and the rows it has received."""

    number: int
    owner: Any
    round: Round
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
        self._at_once = model.device.type == "cpu"
        self._open: dict[int, _Open] = {}
        self._added = 0
        self._first: deque[_Span] = deque()
        self._later: deque[_Span] = deque()
        self._fetches: deque[Launched] = deque()
        self._done: deque[tuple[int, Any]] = deque()
        self._batch: Tensor | None = None
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

    def add(self, probe: Round, owner: Any = None) -> None:
        """Let the rows of ``probe`` wait for a batch; ``finished`` names its ``owner``."""
        entry = _Open(self._added, owner, probe)
        self._added += 1
        self._open[entry.number] = entry
        try:
            self._ask(entry, self._first)
        except Exception:
            del self._open[entry.number]  # it is the caller's again
            raise

    def launch(self) -> Launched:
        """Let the device embed one batch, of fewer rows if fewer wait."""
        spans, left = [], self.most
        while left and (queued := self._later or self._first):
            entry, start, stop = queued.popleft()
            cut = min(stop, start + left)
            spans.append((entry, start, cut))
            if cut < stop:
                queued.appendleft((entry, cut, stop))
            left -= cut - start
        self.waiting -= self.most - left
        return Launched((self._embed(spans, self.most - left),), partial(self._land, spans))

    def fetches(self) -> Iterator[Launched]:
        """What probes have asked of the device beside rows, each once."""
        while self._fetches:
            yield self._fetches.popleft()

    def run(self) -> None:
        """Embed one batch, and wait for it."""
        self._wait(self.launch())
        self.settle()

    def drain(self) -> None:
        """Wait for all that was asked, and for what is asked next."""
        self.settle()
        while self.waiting:
            self.run()

    def settle(self) -> None:
        """Wait for all that probes have asked of the device beside rows."""
        for launched in self.fetches():
            self._wait(launched)

    def _wait(self, launched: Launched) -> None:
        launched.land(*fetch(self._model.device, *launched.tensors))

    def _embed(self, spans: list[_Span], count: int) -> Tensor:
        """The embeddings of a batch, on the device.

        Rows of whatever layout are copied into one contiguous batch, always the same:
        arithmetic chooses its kernels by the layout too, and a row's bytes must not depend on its
        neighbours. A CPU works on as many rows as there are, any other device on a whole batch.
        """
        at = 0
        for entry, start, stop in spans:
            assert isinstance(entry.round, Probe)
            made = entry.round.make(start, stop)
            if self._batch is None:
                with torch.inference_mode(False):  # it is written to in any mode
                    self._batch = made.new_zeros((self.most, *made.shape[1:]))
            self._batch[at : at + len(made)] = made
            at += len(made)
        assert self._batch is not None
        whole = self._batch[:count] if self._at_once else self._batch
        return self._model.score(whole)[:count]

    def _land(self, spans: list[_Span], embeddings: Tensor) -> None:
        """Hand each probe its part of a batch."""
        at = 0
        for entry, start, stop in spans:
            part = embeddings[at : at + stop - start]
            at += len(part)
            if entry.number in self._open:  # else it was given back meanwhile
                entry.parts.append(part)
                entry.received += len(part)
        for entry, _, _ in spans:
            self._advance_if_complete(entry)

    def _advance_if_complete(self, entry: _Open) -> None:
        held, asked = entry.number in self._open, entry.round
        if held and isinstance(asked, Probe) and entry.received == asked.rows:
            self._advance(entry, torch.cat(entry.parts))

    def _ask(self, entry: _Open, spans: deque[_Span]) -> None:
        found = entry.round
        if isinstance(found, Fetch):
            launched = Launched(found.tensors, partial(self._answer, entry))
            if self._at_once:
                self._wait(launched)
            else:
                self._fetches.append(launched)
        elif found.rows:
            spans.append((entry, 0, found.rows))
            self.waiting += found.rows
        else:
            self._advance(entry, torch.empty(0, 0))

    def _answer(self, entry: _Open, *values: Tensor) -> None:
        if entry.number in self._open:
            self._advance(entry, *values)

    def _advance(self, entry: _Open, *answer: Tensor) -> None:
        """A round of a probe is complete: begin its next one, or be done with it."""
        found = entry.round.finish(*answer)
        if isinstance(found, (Probe, Fetch)):
            entry.round, entry.parts, entry.received = found, [], 0
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
        """Forget everything, what is still on the device too; returns the owners of the probes
        that were not given out."""
        owners = [entry.owner for entry in self._open.values()]
        for held in (self._open, self._first, self._later, self._fetches, self._done):
            held.clear()
        self.waiting = 0
        return owners


def run_probes(model: ClipEncoder, probes: Iterable[Round]) -> Iterator[Any]:
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
        queue.settle()
        while queue.full:
            queue.run()
        yield from ready()
    while queue.waiting:
        queue.run()
        yield from ready()
    yield from ready()


def then(probe: Round, answer: Callable[[Any], Any]) -> Round:
    """``probe``, whose last round finishes with ``answer`` of what it makes of its rows."""

    def finish(*rows: Tensor) -> Any:
        found = probe.finish(*rows)
        return then(found, answer) if isinstance(found, (Probe, Fetch)) else answer(found)

    if isinstance(probe, Fetch):
        return Fetch(probe.tensors, finish)
    return replace(probe, finish=finish)


def stack_maps(model: ClipEncoder, probes: Iterable[Round]) -> Tensor:
    """(B, Q, h, w) of B probes of as many maps each."""
    return torch.stack([maps() for maps in run_probes(model, probes)])


def no_rows(found: Any) -> Probe:
    """A probe that is answered already, without masked images."""

    def make(start: int, stop: int) -> Tensor:
        raise AssertionError("no row was asked for")

    return Probe(0, make, lambda rows: found)
