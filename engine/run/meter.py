"""Where a run's time goes: per stage how busy, how much waited, and a trace of it all.

Refuses to know what stages do. The names are the pipeline's verbs.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from medclipsam.engine.errors import OutputError

STAGES = (
    "read_image",
    "fit_image",
    "encode_image",
    "compute_saliency",
    "refine_mask",
    "segment_encode",
    "segment_decode",
    "conclude",
    "write_mask",
    "commit",
)
DEVICE = ("encode_image", "compute_saliency", "segment_encode", "segment_decode")


@dataclass(frozen=True)
class StageFigures:
    """One stage over a whole run.

    Attributes:
        workers: threads that may work on it at once.
        items: what it worked through: items, frames, rows or boxes.
        busy: seconds of all its workers together; of a stage on CUDA, those of the device by its
            own clock.
        occupancy: ``busy`` over wall seconds × workers.
        depth, deepest: mean and largest number of things that waited for it.
    """

    stage: str
    workers: int
    items: int
    busy: float
    occupancy: float
    depth: float
    deepest: int


class _Stage:
    def __init__(self) -> None:
        self.workers, self.items, self.busy = 1, 0, 0.0
        self.waiting, self.deepest, self.since, self.area = 0, 0, 0.0, 0.0


class Meter:
    """Counts of one run; every method may be called from any thread.

    Attributes:
        idle, idle_queued: seconds that the device executor had nothing to do, and of these with a
            part of a batch waiting.
        awaited: seconds that it waited for the device.
    """

    def __init__(self, trace: Trace | None = None):
        self._started = time.perf_counter()
        self._lock = threading.Lock()
        self._stages = {name: _Stage() for name in STAGES}
        self._trace = trace
        self.idle = 0.0
        self.idle_queued = 0.0
        self.awaited = 0.0

    def set_workers(self, **workers: int) -> None:
        """How many threads may work on a stage, one unless said."""
        for name, count in workers.items():
            self._stages[name].workers = count

    @contextmanager
    def work(self, stage: str, items: int = 1, own: bool = True) -> Iterator[None]:
        """Time what is done inside.

        Args:
            own: the time counts; else something else does the work, and ``ran`` tells how long.
        """
        start = time.perf_counter()
        try:
            yield
        finally:
            stop = time.perf_counter()
            with self._lock:
                found = self._stages[stage]
                found.busy += stop - start if own else 0.0
                found.items += items
            if self._trace:
                self._trace.span(stage, start - self._started, stop - start, items)

    def wait(self, stage: str, change: int) -> None:
        """``change`` more things wait for a stage."""
        now = time.perf_counter() - self._started
        with self._lock:
            found = self._stages[stage]
            found.area += found.waiting * (now - found.since)
            found.since = now
            found.waiting += change
            found.deepest = max(found.deepest, found.waiting)
            depth = found.waiting
        if self._trace:
            self._trace.level(stage, now, depth)

    def ran(self, stage: str, seconds: float) -> None:
        """A stage's work took so long beside what ``work`` has timed."""
        with self._lock:
            self._stages[stage].busy += seconds

    def wait_for_device(self, seconds: float) -> None:
        """The device executor waited for the device."""
        self.awaited += seconds

    def rest(self, seconds: float, queued: bool) -> None:
        """The device executor had nothing to do, although (``queued``) a part of a batch waited."""
        self.idle += seconds
        if queued:
            self.idle_queued += seconds

    @property
    def device_busy(self) -> float:
        """Seconds that the device worked, whatever the executor did meanwhile."""
        with self._lock:
            return sum(self._stages[stage].busy for stage in DEVICE)

    @property
    def seconds(self) -> float:
        """Since the meter was made."""
        return time.perf_counter() - self._started

    def figures(self) -> list[StageFigures]:
        """All stages in the order of the pipeline."""
        wall = max(self.seconds, 1e-9)
        with self._lock:
            return [
                StageFigures(
                    name,
                    s.workers,
                    s.items,
                    round(s.busy, 3),
                    round(s.busy / wall / s.workers, 4),
                    round((s.area + s.waiting * (wall - s.since)) / wall, 2),
                    s.deepest,
                )
                for name, s in self._stages.items()
            ]


class Trace:
    """Events in the JSON array format of trace viewers (Perfetto, chrome://tracing).

    Written as they happen; a file that was never closed opens all the same. One that cannot
    be written any more is switched off: no run ends for its profile.

    Attributes:
        failure: why it breaks off, or empty.

    Raises:
        OutputError: the file cannot be made.
    """

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.Lock()
        self._threads: dict[int, int] = {}
        self.failure = ""
        self._ended = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[str] = path.open("w", encoding="utf-8")
            self._file.write("[\n")
        except OSError as exc:
            raise OutputError(f"cannot write {path}: {exc.strerror}") from exc

    def span(self, name: str, start: float, seconds: float, items: int) -> None:
        """Something took ``seconds`` from ``start`` on, in this thread."""
        times = {"ts": round(start * 1e6, 1), "dur": round(seconds * 1e6, 1)}
        self._write({"name": name, "ph": "X", "args": {"items": items}, **times})

    def level(self, name: str, at: float, value: int) -> None:
        """``value`` things wait for a stage."""
        event = {"name": f"waiting for {name}", "ph": "C", "args": {"waiting": value}}
        self._write({**event, "ts": round(at * 1e6, 1)})

    def close(self) -> None:
        """End the array."""
        with self._lock:
            self._put('{"name":"process_name","ph":"M","pid":1,"args":{"name":"run"}}\n]\n')
            try:
                self._file.close()
            except OSError as exc:
                self.failure = self.failure or f"cannot write {self._path}: {exc.strerror}"
            self._ended = True

    def _write(self, event: dict[str, Any]) -> None:
        thread = threading.current_thread()
        with self._lock:
            number = self._threads.get(thread.ident or 0)
            lines = []
            if number is None:
                number = self._threads[thread.ident or 0] = len(self._threads) + 1
                named = {"name": "thread_name", "ph": "M", "args": {"name": thread.name}}
                lines.append({**named, "pid": 1, "tid": number})
            lines.append({**event, "pid": 1, "tid": number})
            self._put("".join(json.dumps(line, separators=(",", ":")) + ",\n" for line in lines))

    def _put(self, text: str) -> None:
        if self.failure or self._ended:  # a read that hung may end after the run
            return
        try:
            self._file.write(text)
        except OSError as exc:
            self.failure = f"cannot write {self._path}: {exc.strerror}"
