"""Score rows: masked images of many images, embedded in batches of one shape.

A method says with a ``Probe`` which rows of an image it wants to see; the queue cuts the
rows of all images into batches of exactly ``ClipEncoder.rows``, so only the very last
batch is padded, and pixels of a row exist only while its batch does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

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
        finish: float32 (R, D) unit embeddings → saliency (P, h, w).
    """

    embedding: Tensor
    rows: int
    make: Callable[[int, int], Tensor]
    finish: Callable[[Tensor], Tensor]


@dataclass
class _Open:
    probe: Probe
    parts: list[Tensor] = field(default_factory=list)
    received: int = 0


def run_probes(model: ClipEncoder, probes: Iterable[Probe]) -> Iterator[tuple[Probe, Tensor]]:
    """Each probe with its saliency, in order, as soon as its last row has been embedded.

    ``probes`` is consumed lazily: what is held is one batch of pixels, and the embeddings
    of those images whose rows are in it.
    """
    waiting: deque[_Open] = deque()
    batch: list[tuple[_Open, int, int]] = []
    filled = 0
    for probe in probes:
        entry = _Open(probe)
        waiting.append(entry)
        start = 0
        while start < probe.rows:
            stop = min(probe.rows, start + model.rows - filled)
            batch.append((entry, start, stop))
            filled += stop - start
            start = stop
            if filled == model.rows:
                _embed(model, batch)
                batch, filled = [], 0
        yield from _finished(waiting)
    if batch:
        _embed(model, batch)
    yield from _finished(waiting)


def _embed(model: ClipEncoder, batch: list[tuple[_Open, int, int]]) -> None:
    """Embed one batch and hand each probe its part."""
    parts = [entry.probe.make(start, stop) for entry, start, stop in batch]
    rows = parts[0] if len(parts) == 1 else torch.cat(parts)
    if short := model.rows - len(rows):
        rows = torch.cat([rows, rows[:1].expand(short, -1, -1, -1)])
    embeddings = model.score(rows)
    at = 0
    for entry, start, stop in batch:
        count = stop - start
        entry.parts.append(embeddings[at : at + count])
        entry.received += count
        at += count


def _finished(waiting: deque[_Open]) -> Iterator[tuple[Probe, Tensor]]:
    while waiting and waiting[0].received == waiting[0].probe.rows:
        entry = waiting.popleft()
        probe = entry.probe
        rows = torch.cat(entry.parts) if entry.parts else probe.embedding.new_empty(0, 0)
        yield probe, probe.finish(rows)


def stack_maps(model: ClipEncoder, probes: Iterable[Probe]) -> Tensor:
    """(B, P, h, w) of B probes."""
    return torch.stack([saliency for _, saliency in run_probes(model, probes)])


def no_rows(embedding: Tensor, saliency: Tensor) -> Probe:
    """A probe that is answered already: (P, h, w) found without masked images."""

    def make(start: int, stop: int) -> Tensor:
        raise AssertionError("no row was asked for")

    return Probe(embedding, 0, make, lambda rows: saliency)
