"""Score rows: masked images of many images, embedded in batches of one shape.

A method says with a ``Probe`` which rows of an image it wants to see; ``RowQueue`` cuts the
rows of all images into batches of exactly ``ClipEncoder.rows``, padded only where no further
row is to be had, and pixels of a row exist only while its batch does.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from medclipsam.engine.encoder import ClipEncoder


@dataclass(frozen=True)
class Probe:
    """What one image asks of the model, and what becomes of the answer.

    Attributes:
        embedding: float32 (D,), the whole image's.
        rows: number of rows R, possibly 0.
        make: (start, stop) → normalised rows (stop − start, 3, S, S).
        finish: float32 (R, D) unit embeddings → saliency (P, h, w), or what is made of it.
    """

    embedding: Tensor
    rows: int
    make: Callable[[int, int], Tensor]
    finish: Callable[[Tensor], Any]


@dataclass
class _Open:
    probe: Probe
    parts: list[Tensor] = field(default_factory=list)
    received: int = 0


class RowQueue:
    """Rows of many probes on their way through batches of one shape, first come, first served.

    What is held is spans of rows and the embeddings of probes that are not complete; pixels
    exist only while their batch does.
    """

    def __init__(self, model: ClipEncoder):
        self._model = model
        self._open: deque[_Open] = deque()
        self._spans: deque[tuple[_Open, int, int]] = deque()
        self.waiting = 0

    @property
    def full(self) -> bool:
        """Whether a whole batch waits."""
        return self.waiting >= self._model.rows

    def add(self, probe: Probe) -> None:
        """Let the rows of ``probe`` wait for a batch."""
        entry = _Open(probe)
        self._open.append(entry)
        if probe.rows:
            self._spans.append((entry, 0, probe.rows))
            self.waiting += probe.rows

    def run(self) -> None:
        """Embed one batch, padded if fewer rows wait than it has."""
        batch, left = [], self._model.rows
        while self._spans and left:
            entry, start, stop = self._spans.popleft()
            cut = min(stop, start + left)
            batch.append((entry, start, cut))
            if cut < stop:
                self._spans.appendleft((entry, cut, stop))
            left -= cut - start
        self.waiting -= self._model.rows - left
        _embed(self._model, batch)

    def finished(self) -> Iterator[Any]:
        """What complete probes make of their rows, in the order of their adding."""
        while self._open and self._open[0].received == self._open[0].probe.rows:
            entry = self._open.popleft()
            probe = entry.probe
            rows = torch.cat(entry.parts) if entry.parts else probe.embedding.new_empty(0, 0)
            yield probe.finish(rows)

    def clear(self) -> None:
        """Forget everything."""
        self._open.clear()
        self._spans.clear()
        self.waiting = 0


def run_probes(model: ClipEncoder, probes: Iterable[Probe]) -> Iterator[Any]:
    """What each probe makes of its rows, in order, as soon as its last one has been embedded.

    ``probes`` is consumed lazily: what is held is one batch of pixels, and the embeddings
    of those images whose rows are in it.
    """
    queue = RowQueue(model)
    for probe in probes:
        queue.add(probe)
        while queue.full:
            queue.run()
        yield from queue.finished()
    if queue.waiting:
        queue.run()
    yield from queue.finished()


def _embed(model: ClipEncoder, batch: list[tuple[_Open, int, int]]) -> None:
    """Embed one batch and hand each probe its part.

    Rows of whatever layout are copied into one contiguous batch: arithmetic chooses its
    kernels by the layout too, and a row's bytes must not depend on its neighbours.
    """
    rows, at = torch.empty(0), 0
    for entry, start, stop in batch:
        made = entry.probe.make(start, stop)
        if not at:
            rows = made.new_empty((model.rows, *made.shape[1:]))
        rows[at : at + len(made)] = made
        at += len(made)
    rows[at:] = rows[:1]
    embeddings = model.score(rows)
    at = 0
    for entry, start, stop in batch:
        count = stop - start
        entry.parts.append(embeddings[at : at + count])
        entry.received += count
        at += count


def stack_maps(model: ClipEncoder, probes: Iterable[Probe]) -> Tensor:
    """(B, P, h, w) of B probes."""
    return torch.stack(list(run_probes(model, probes)))


def no_rows(embedding: Tensor, saliency: Tensor) -> Probe:
    """A probe that is answered already: (P, h, w) found without masked images."""

    def make(start: int, stop: int) -> Tensor:
        raise AssertionError("no row was asked for")

    return Probe(embedding, 0, make, lambda rows: saliency)
